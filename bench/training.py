"""Training speed: beside TRL, of both our paths, in 4 bits, and of several adapters together.

Run as ``python -m bench.training``. Both trainers train the same adapter on the same rows, in the same order
and in batches of the same rows, in turn in one process, from the same start; what is compared is tokens a
second of whole steps without evaluation, and the losses of the steps. TRL runs at its best here: arithmetic
in bf16 by autocast, and padded or padding-free rows, whichever is faster in a first short run. (On a CPU
padding-free rows bring a mask over the whole batch.)

Of DoRA and of a base in NF4, the fused decoder is measured beside the modules of transformers and PEFT, in
processes of their own: speed and memory. ``--cases dora,nf4 --ranks 16`` measures these two alone.

``--whole`` then measures from the start of a process to the published adapter, beside a process that trains
as many steps with TRL and saves. Small jobs are trained as ``manylora train --jobs`` does and one after
another.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Set
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from trl import SFTConfig, SFTTrainer

from bench import machine, report
from bench.run import RESULTS
from bench.training_paths import beside, in_process_of_its_own
from examples.rows import RECIPES, write_rows
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import load_config, to_yaml
from manylora.adapters.training.jobs.train_jobs import train_jobs
from manylora.adapters.training.run.train import train
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import Session, open_session
from manylora.adapters.training.trainers.build import build_trainer

TRL_KINDS = ("trl-padded", "trl-free")
PROBE_STEPS = 2
PATH_CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "nf4": {"quantization": "nf4"},
    "nf4-dora": {"quantization": "nf4", "use_dora": True},
}
CASES = ("trl", *PATH_CASES, "whole", "jobs")


def make(session: Session, kind: str, steps: int) -> Any:
    """A trainer of ``steps`` steps: ours, or TRL's own on the same model, rows and arguments."""
    config = session.config.model_copy(update={"max_steps": steps})
    own = Session(config, session.base, session.prepared, session.folder, session.loader)
    trainer, _ = build_trainer(own, [], MetricsLog(config.output_dir.with_suffix(".jsonl")))
    if kind == "manylora":
        return trainer
    changes: dict[str, Any] = {"bf16": session.loader.dtype.itemsize == 2, "logging_steps": 1}
    if kind == "trl-free":
        changes |= {"padding_free": True, "max_length": None}
    known = {f.name: getattr(trainer.args, f.name) for f in fields(SFTConfig) if f.init} | changes
    return SFTTrainer(
        model=trainer.model,
        args=SFTConfig(**known),
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )


def measure(session: Session, kind: str, steps: int) -> tuple[float, list[float]]:
    """Tokens a second of a run, and its losses step by step."""
    trainer = make(session, kind, steps)
    started = time.perf_counter()
    trainer.train()
    spent = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return float(trainer._total_train_tokens) / spent, losses


def in_turn(sessions: dict[str, Session], steps: int, repeat: int, console: Console) -> dict[str, Any]:
    """Median tokens a second of each kind, and how far the losses of the first two are apart."""
    speeds: dict[str, list[float]] = {kind: [] for kind in sessions}
    curves: dict[str, list[float]] = {}
    for _ in range(repeat):
        for kind, session in sessions.items():
            speed, curves[kind] = measure(session, kind.partition("/")[0], steps)
            speeds[kind].append(speed)
            console.print(f"{kind:16} {speed:8.1f} tokens/s")
    medians = {kind: round(statistics.median(values), 1) for kind, values in speeds.items()}
    ours, theirs = list(curves.values())[:2]
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    first, second = list(medians.values())[:2]
    ratio = round(first / second, 3)
    return {"tokens_per_second": medians, "ratio": ratio, "largest_loss_difference": round(apart, 5)}


def beside_trl(config: TrainConfig, steps: int, repeat: int, console: Console) -> dict[str, Any]:
    """This trainer and the faster kind of TRL's."""
    session = open_session(config, Console(quiet=True))
    probed = {kind: measure(session, kind, PROBE_STEPS)[0] for kind in TRL_KINDS}
    best = max(probed, key=lambda kind: probed[kind])
    console.print(f"TRL: {probed}")
    return in_turn({"manylora": session, best: session}, steps, repeat, console)


def four_bits(config: TrainConfig, steps: int, repeat: int, console: Console) -> dict[str, Any]:
    """This trainer on a base in NF4 and in bf16."""
    nf4 = open_session(config.model_copy(update={"quantization": "nf4"}), Console(quiet=True))
    plain = open_session(config, Console(quiet=True))
    return in_turn({"manylora/nf4": nf4, "manylora/bf16": plain}, steps, repeat, console)


def at_one_rank(config: TrainConfig, wanted: Set[str], repeat: int, console: Console) -> dict[str, Any]:
    """The cases that depend on the rank."""
    assert config.max_steps is not None, "written by this script"
    found: dict[str, Any] = {}
    if "trl" in wanted:
        found["trl"] = beside_trl(config, config.max_steps, repeat, console)
    for case, changes in PATH_CASES.items():
        if case in wanted:
            console.print(case)
            changed = config.model_copy(update=changes)
            found[case] = beside(changed, repeat, console, in_process_of_its_own)
    if "nf4" in wanted:
        found["nf4_beside_bf16"] = four_bits(config, config.max_steps, repeat, console)
    return found


def together(config: TrainConfig, jobs: int, console: Console) -> dict[str, float]:
    """Seconds for ``jobs`` small adapters in one run, and one by one."""
    small = [
        config.model_copy(update={"seed": seed, "batch_size": 1, "max_steps": 8, "sample_tokens": 8})
        for seed in range(jobs)
    ]

    def named(kind: str) -> list[TrainConfig]:
        root = config.output_dir.with_name(kind)
        return [job.model_copy(update={"output_dir": root / str(job.seed)}) for job in small]

    started = time.perf_counter()
    train_jobs(named("together"))
    between = time.perf_counter()
    for job in named("alone"):
        train(job)
    ended = time.perf_counter()
    result = {"together_seconds": between - started, "one_by_one_seconds": ended - between}
    console.print(f"{jobs} jobs: {result}")
    return {name: round(value, 1) for name, value in result.items()}


def whole(config: TrainConfig, steps: int, console: Console) -> dict[str, float]:
    """Seconds from the start of a process to the published adapter, and to what TRL saves."""
    run = config.model_copy(update={"max_steps": steps, "output_dir": config.output_dir.with_name("whole")})
    file = config.output_dir.with_name("whole.yaml")
    file.write_text(to_yaml(run), encoding="utf-8")
    commands = {
        "manylora_seconds": ["-m", "manylora", "train", "--config", str(file)],
        "trl_seconds": ["-m", "bench.training", "--only-trl", str(file)],
    }
    seconds = {}
    for name, command in commands.items():
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)
        seconds[name] = round(time.perf_counter() - started, 1)
        console.print(f"{name} {seconds[name]}")
    return seconds


def only_trl(file: Path) -> None:
    """Train as ``file`` says with TRL, padded, and save the adapter."""
    config = load_config({}, file)
    assert config.max_steps is not None, "written by this script"
    trainer = make(open_session(config, Console(quiet=True)), "trl-padded", config.max_steps)
    trainer.train()
    trainer.save_model(str(config.output_dir.with_name("trl")))


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of a run.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many runs of each.")] = 3,
    ranks: Annotated[str, typer.Option(help="Ranks to compare at, with commas.")] = "8,16",
    jobs: Annotated[int, typer.Option(help="Small adapters, of eight rows each; 0 for none.")] = 4,
    whole_steps: Annotated[int, typer.Option("--whole", help="Steps of whole runs; 0 for none.")] = 20,
    cases: Annotated[
        str, typer.Option(help=f"Which to measure, with commas: {', '.join(CASES)}.")
    ] = ",".join(CASES),
    dtype: Annotated[str, typer.Option(help="Of the base: auto, bf16 or fp32.")] = "auto",
    trl_file: Annotated[Path | None, typer.Option("--only-trl", hidden=True)] = None,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    if trl_file is not None:
        only_trl(trl_file)
        return
    wanted = frozenset(cases.split(","))
    if wanted - set(CASES):
        raise typer.BadParameter(f"--cases: none of {', '.join(CASES)}: {', '.join(wanted - set(CASES))}")
    console = Console(stderr=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        data, _ = write_rows(RECIPES["support"](), Path(scratch))
        config = TrainConfig.model_validate({
            "base_model": base, "train_path": data, "output_dir": Path(scratch) / "out", "max_steps": steps,
            "batch_size": batch_size, "max_length": 256, "eval_split": 0, "save_steps": 10**9,
            "logging_steps": 1, "dtype": dtype,
        })  # fmt: skip
        for rank in map(int, ranks.split(",")):
            at_rank = config.model_copy(update={"lora_r": rank, "lora_alpha": 2.0 * rank})
            figures[f"r{rank}"] = at_one_rank(at_rank, wanted, repeat, console)
        if "whole" in wanted and whole_steps:
            figures["whole"] = {"steps": whole_steps, **whole(config, whole_steps, console)}
        if "jobs" in wanted and jobs:
            figures["jobs"] = together(config, jobs, console)
    what = {"base": base, "steps": steps, "batch_size": batch_size, "jobs": jobs, "dtype": dtype}
    line = json.dumps({"bench": "training", **machine.setting(), **what, **figures})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-training")
    print(line)


if __name__ == "__main__":
    typer.run(main)
