"""The check of a GPU, dry: the whole script on a CPU, and what becomes of stages that fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

import typer
from typer.testing import CliRunner

from bench.gpu_check import __main__ as check
from bench.gpu_check.base import TINY, write_base
from bench.gpu_check.results import Part, Results, heard
from manylora.server.model.loading.loader import load_model


def test_the_base_is_a_model_that_loads(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", TINY, torch.device("cpu"))
    loaded = load_model(base, dtype="fp32", device="cpu", max_model_len=None)
    assert loaded.hf.config.num_hidden_layers == TINY.layers
    with torch.inference_mode():
        logits = loaded.hf(torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert 0.5 < logits.std() < 5
    assert loaded.tokenizer.encode("abc") == [loaded.tokenizer.encode(c)[0] for c in "abc"]


def check_run(stages: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[Part]]:
    """The exit status and the parts of a dry run of some stages."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    app = typer.Typer()
    app.command()(check.main)
    options = ["--size", "tiny", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(app, [*options, *(f"--stage={name}" for name in stages)])
    (path,) = out.glob("*.json")
    found = json.loads(path.read_text())
    assert "parts" in result.output
    assert path.with_suffix(".md").read_text().startswith("# GPU check")
    return result.exit_code, [Part(**part) for part in found["parts"]]


@pytest.mark.slow
def test_steps_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = check_run(["decoder"], tmp_path, monkeypatch)
    assert status == 0, [part for part in parts if part.ok is False]
    by_name = {f"{part.stage} {part.name}": part for part in parts}
    timed = by_name["decoder decode steps"].rows
    assert [(row["sequences"], row["adapters"]) for row in timed] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert all(row["tokens/s"] > 0 for row in timed)
    assert by_name["decoder adapters that arrive"].ok


@pytest.mark.sweep
@pytest.mark.timeout(600)
def test_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = check_run([], tmp_path, monkeypatch)
    assert status == 0, [part for part in parts if part.ok is False]
    assert {part.stage for part in parts} >= {
        "base", "kernels", "faults", "agreement", "decoder", "server", "deterministic",
    }  # fmt: skip
    (compared,) = (part for part in parts if (part.stage, part.name) == ("agreement", "decode steps"))
    assert [row["rows"] for row in compared.rows] == [1, 3]
    assert all(row["equal"] and 0 < row["error"] < 0.2 for row in compared.rows)


def results(directory: Path) -> Results:
    return Results(directory, "gpu", {"size": "tiny"})


def stage(name: str, monkeypatch: pytest.MonkeyPatch, code: str) -> check.Stage:
    """A stage that runs ``code``."""
    monkeypatch.setattr(check.Stage, "command", property(lambda _: [sys.executable, "-c", code]))
    return check.Stage(name, (), 30)


PART = 'print(\'{"stage": "s", "name": "n", "ok": true}\', flush=True);'


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no such device')", "no such device"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "-11"),
    ],
)
def test_a_stage_that_fails_loses_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    found = results(tmp_path)
    stage("s", monkeypatch, f"{PART} print('noise'); {code}").run(found, monotonic() + 60)
    assert [(part.name, part.ok) for part in found.parts] == [("n", True), ("the stage", False)]
    assert said in found.parts[-1].note
    assert json.loads(found.path.read_text())["parts"][0]["name"] == "n"


@pytest.mark.sweep
def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(tmp_path)
    endless = stage("s", monkeypatch, f"import threading; {PART} threading.Event().wait()")
    endless.run(found, monotonic() + 3)
    assert [part.ok for part in found.parts] == [True, False]
    endless.run(found, monotonic())
    assert "no time left" in found.parts[-1].note


def test_only_lines_of_parts_are_heard() -> None:
    assert heard("a line of something else") is None
    assert heard('{"stage": "s", "name": "n", "ok": null}') == Part("s", "n", None)
