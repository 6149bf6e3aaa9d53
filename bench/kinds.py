"""What a token costs under every kind of adapter, beside LoRA with as many trained numbers: decode steps.

    python -m bench.kinds

Each kind changes every linear layer in the blocks with options near PEFT's defaults, its tensors random.
Steps without an adapter, with the kind and with LoRA take turns. Nothing else may run on the machine
meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.adapters.errors import AdapterError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.targets import select_targets
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.adapters.format.weights.expected_tensors import lay_out
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, StepInputs, lora_inputs
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.loading.loader import decoder_candidates, describe_base, load_model
from manylora.server.model.pages.pool import PagePool

# Where PEFT's defaults fit no usual width, or a rank is wanted that can be compared.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "C3A": {"block_size": 64},
    "OFT": {"oft_block_size": 32},
    "SUPERTUNING": {"sparsity": 0.99},
    "FOURIERFT": {"n_frequency": 1000},
    "SHIRA": {"r": 8},
    "VBLORA": {"num_vectors": 90, "vector_length": 64, "r": 4},
    **{name: {"r": 16} for name in ("DEFT", "HIRA", "PEANUT", "PSOFT", "RANDLORA", "LOHA", "HRA", "MISS")},
}

FIXED = ("vera_A", "vera_B", "randlora_A", "randlora_B", "frod_V")  # in names of tensors that are not trained


@dataclass(frozen=True)
class Row:
    """One kind's cost."""

    kind: str
    trained: int  # numbers of its file that are trained
    memory: int  # bytes of adapter memory
    publish_s: float  # to read, check and pack it
    us_per_token: float  # what a token takes longer than on the base
    lora_rank: int  # of the LoRA with about as many numbers
    lora_us_per_token: float
    base_us_per_token: float


class Bench:
    """A decoder with a pool for two adapters, and a batch of sequences that decode."""

    def __init__(self, base: Path, *, batch: int, context: int, memory: int, kernels: str = "auto") -> None:
        loaded = load_model(base, dtype="bf16", device="auto", max_model_len=None)
        self.decoder: Decoder = next(iter(decoder_candidates(loaded, kernels)))
        self.pool = PagePool(self.decoder.modules, memory, loaded.dtype, loaded.device, self.decoder)
        self.blocks = 1 + batch * -(-context // BLOCK_SIZE)
        self.decoder.allocate(self.pool.data, self.blocks, batch)
        self.base: BaseModel = describe_base(loaded, self.decoder, "base")
        self.batch, self.context, self.vocabulary = batch, context, loaded.hf.config.vocab_size

    def load(self, directory: Path) -> AdapterPages:
        """Read, check and pack the adapter in ``directory``."""
        artifact = read_artifact(directory, self.base, Limits(1 << 16, 1 << 34))
        packed = self.pool.pack(artifact.digest, artifact.delta)
        pages = self.pool.reserve(packed)
        if pages is None:
            raise typer.BadParameter(
                f"{packed.data.nbytes:,} bytes of pages do not fit", param_hint="--memory"
            )
        self.pool.write(pages, packed)
        return pages

    def inputs(self, pages: AdapterPages | None) -> StepInputs:
        """A decode step in which every sequence runs that adapter."""
        rng = np.random.default_rng(0)
        tables = 1 + rng.permutation(self.blocks - 1).reshape(self.batch, -1)
        last = self.context - 1
        ends = np.arange(self.batch + 1, dtype=np.int32)
        return StepInputs(
            token_ids=rng.integers(0, self.vocabulary, self.batch),
            positions=np.full(self.batch, last, np.int64),
            slots=tables[:, last // BLOCK_SIZE] * BLOCK_SIZE + last % BLOCK_SIZE,
            query_start=ends,
            context=np.full(self.batch, self.context, np.int32),
            block_tables=tables.astype(np.int32),
            logits_rows=ends[1:].astype(np.int64) - 1,
            lora=None if pages is None else lora_inputs([[(pages, 1.0)]] * self.batch),
        )

    def us_per_token(self, steps: Sequence[StepInputs], repeat: int) -> list[float]:
        """The median time of each step by sequence; they take turns after one that is not counted."""
        turns = [[self._seconds(step) for step in steps] for _ in range(1 + repeat)][1:]
        return [1e6 * median(own) / self.batch for own in zip(*turns, strict=True)]

    def _seconds(self, step: StepInputs) -> float:
        begin = perf_counter()
        self.decoder.step(step)
        if self.pool.data.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - begin


def write_random(directory: Path, base: BaseModel, config: Mapping[str, Any]) -> int:
    """Write an adapter with random tensors; returns how many of its numbers are trained.

    Raises:
        ArtifactError: the options do not fit the base.
    """
    faults = Faults()
    full = {"peft_version": "0.21.2", "target_modules": "all-linear", **config}
    parsed = parse_config(full, faults, KINDS_OF_UPDATES)
    targets = None if parsed is None else select_targets(parsed, base, faults)
    layout = None if parsed is None or targets is None else lay_out(parsed, targets, base, faults)
    faults.raise_any()
    assert layout is not None
    torch.manual_seed(0)
    tensors = {
        slot.key: torch.zeros(slot.shape, dtype=torch.int32)
        if slot.integers
        else 0.01 * torch.randn(slot.shape)
        for slot in layout.slots()
    }
    for key, tensor in tensors.items():
        _make_valid(key, tensor, tensors, base)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(full))
    return sum(
        tensor.numel()
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not any(name in key for name in FIXED)
    )


def _make_valid(key: str, tensor: torch.Tensor, tensors: Mapping[str, torch.Tensor], base: BaseModel) -> None:
    """What random numbers can't be: places spread over the weight, copies, and the sizes of bases."""
    name, _, ending = key.removeprefix("base_model.model.").rpartition(".")
    if ending in ("randlora_A", "randlora_B"):
        tensor.copy_(tensors[f"base_model.{ending}"])
    if ending == "shira_indices":
        module, place = base.modules[name], torch.arange(tensor.shape[1])
        tensor[0] = place % module.out_features
        tensor[1] = (place + place // module.out_features) % module.in_features
    if ending == "supertuning_indices":
        tensor.copy_(torch.arange(tensor.numel()) * 97)
    if ".frod_s_size." in key:
        tensor.fill_(len(tensors[key.replace("s_size", "V")]))


def measure(bench: Bench, kinds: Sequence[str], repeat: int, scratch: Path) -> Iterator[Row | str]:
    """The cost of each kind; a sentence for one that does not fit the base."""
    per_rank = sum(m.in_features + m.out_features for m in bench.base.modules.values())
    for kind in kinds:
        try:
            trained = write_random(scratch / kind, bench.base, {"peft_type": kind, **OPTIONS.get(kind, {})})
            begin = perf_counter()
            pages = bench.load(scratch / kind)
        except AdapterError as error:
            yield f"{kind}: {error}"
            continue
        publish, memory = perf_counter() - begin, bench.pool.used_bytes
        rank = max(1, round(trained / per_rank))
        write_random(scratch / f"{kind}-lora", bench.base, {"peft_type": "LORA", "r": rank})
        lora = bench.load(scratch / f"{kind}-lora")
        base, own, beside = bench.us_per_token([bench.inputs(p) for p in (None, pages, lora)], repeat)
        yield Row(kind, trained, memory, publish, own - base, rank, beside - base, base)
        bench.pool.release(pages)
        bench.pool.release(lora)


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    kind: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all of the table.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that decode together.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="Tokens before each.")] = 200,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many steps.")] = 20,
    memory: Annotated[int, typer.Option(min=1, help="MiB of adapter memory.")] = 4096,
) -> None:
    """Print a line a kind, then one line of JSON, which is kept in bench/results.

    The table in docs/adapters.md is made from the newest result of all kinds: run `make docs` after it.
    """
    started = datetime.now(UTC)
    bench = Bench(resolve_base(base), batch=batch, context=context, memory=memory << 20)
    rows: list[dict[str, object]] = []
    print(f"{'µs/token':12}{'kind':>10}{'LoRA':>10}{'its rank':>10}{'MiB':>10}{'publish s':>10}")
    with TemporaryDirectory() as scratch:
        for row in measure(bench, kind or list(KINDS_OF_UPDATES), repeat, Path(scratch)):
            if isinstance(row, str):
                print(row)
                continue
            rows.append(asdict(row))
            print(
                f"{row.kind:12}{row.us_per_token:10.1f}{row.lora_us_per_token:10.1f}{row.lora_rank:10}"
                f"{row.memory / 2**20:10.1f}{row.publish_s:10.2f}"
            )
    about = {"started": f"{started:%Y-%m-%dT%H:%M:%SZ}", **machine.setting(), "base": base}
    options = {"batch": batch, "context": context, "repeat": repeat, "all_kinds": not kind}
    line = json.dumps({"bench": "kinds", **about, "options": options, "rows": rows})
    report.save(line, RESULTS, f"{started:%Y%m%d-%H%M%S}-kinds")
    print(line)


if __name__ == "__main__":
    typer.run(main)
