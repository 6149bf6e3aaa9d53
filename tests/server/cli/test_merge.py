"""``manylora compose`` and ``manylora merge`` from the command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from manylora.adapters.format.provenance import read_provenance
from manylora.server.cli.main import app
from tests.support.adapters import write_adapter

SCREEN = {"COLUMNS": "100", "LINES": "40", "NO_COLOR": "1", "TERM": "dumb"}


def invoke(*arguments: object) -> Result:
    return CliRunner(env=SCREEN).invoke(app, [str(argument) for argument in arguments])


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def adapters(tiny_llama: Path, tmp_path: Path) -> tuple[Path, Path]:
    one = write_adapter(tmp_path / "one", tiny_llama, rank=4, seed=1)
    return one, write_adapter(tmp_path / "two", tiny_llama, rank=6, seed=2, targets="all-linear")


def test_compose(tiny_llama: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = adapters
    out = tmp_path / "out"
    result = invoke(
        "compose", "--base", tiny_llama, "--adapter", f"{one}*0.7", "--adapter", f"{two}*-.5", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert "none: the sum is exact" in result.stdout
    assert f"{out}: rank 10" in result.stdout.replace("\n", "")
    weights = {m["name"]: m["weight"] for m in read_provenance(out).lineage["members"]}
    assert weights == {"one": 0.7, "two": -0.5}


def test_compose_with_a_method(tiny_llama: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--method", "dare_ties", "--rank", 3, "--density", 0.6, "--per-module"]
    members = [part for path in adapters for part in ("--adapter", path)]
    result = invoke("compose", "--base", tiny_llama, *members, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "model.layers.1.mlp.down_proj" in result.stdout
    lineage = read_provenance(tmp_path / "out").lineage
    settings = (lineage["rank"], lineage["density"], lineage["seed"], lineage["sign_method"])
    assert settings == (3, 0.6, 0, "total")


def test_merge(tiny_llama: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    members = ["--adapter", adapters[0], "--adapter", f"{adapters[1]}*0.5"]
    options = ["--dtype", "bf16", "--max-shard-size", "100kB"]
    result = invoke("merge", "--base", tiny_llama, *members, *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert "same likeliest token" in result.stdout
    assert " KiB in " in result.stdout
    assert (out / "model.safetensors.index.json").is_file()
    assert "| two | `" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_merge_that_is_ended_by_a_signal_leaves_nothing(
    number: signal.Signals,
    tiny_llama: Path,
    adapters: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []

    def verify(plan: object, directory: Path, dtype: object) -> Any:
        written.append((directory / "model.safetensors").exists())
        os.kill(os.getpid(), number)

    monkeypatch.setattr("manylora.adapters.merge.export.verify", verify)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        result = invoke("merge", "--base", tiny_llama, "--adapter", adapters[0], "--out", tmp_path / "out")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert written == [True]
    assert result.exit_code == 128 + number
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in adapters}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["compose", "--adapter", "{one}*9"], "weight of"),
        (["compose", "--adapter", "{one}*x"], "after '*' comes a weight"),
        (["compose", "--adapter", "{one}", "--method", "svd"], "svd needs rank"),
        (["compose", "--adapter", "{one}", "--density", "0.5"], "linear has no density"),
        (["compose", "--adapter", "{one}/none"], "no adapter at"),
        (["merge", "--adapter", "{one}", "--dtype", "int8"], "--dtype int8: must be keep, bf16, fp16, fp32"),
        (["merge", "--adapter", "{one}", "--max-shard-size", "x"], "--max-shard-size: must be a size"),
        (
            ["merge", "--adapter", "{one}", "--max-shard-size", "0"],
            "--max-shard-size 0: a file holds at least",
        ),
        (["merge", "--adapter", "{one}", "--out", "{one}"], "exists already"),
    ],
)
def test_refusals(
    tiny_llama: Path, adapters: tuple[Path, Path], tmp_path: Path, options: list[str], said: str
) -> None:
    given = [option.format(one=adapters[0]) for option in options]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert said in refusal(invoke(*given, "--base", tiny_llama, *out))
    assert not (tmp_path / "out").exists()


def test_every_fault_of_every_member_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_adapter(tmp_path / name, tiny_llama)
        (tmp_path / name / "adapter_config.json").write_text("{")
    error = refusal(
        invoke("compose", "--base", tiny_llama, "--adapter", tmp_path / "one", "--adapter", tmp_path / "two",
               "--out", tmp_path / "out")
    )  # fmt: skip
    assert "one: adapter_config.json" in error
    assert "two: adapter_config.json" in error
