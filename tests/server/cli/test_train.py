"""``manylora train`` and ``manylora estimate`` at the terminal."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from manylora.server.cli.main import app
from tests.support.training_data import chat, write


def test_dry_run_shows_the_data_and_writes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat("hi", "hello"), chat("hi", "bye"), chat("hi", "hello")])
    out = tmp_path / "out"
    options = ["--base-model", str(tiny_llama), "--train-path", str(data), "--output-dir", str(out)]
    result = CliRunner().invoke(app, ["train", *options, "--max-length", "256", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "data.jsonl:3: is the same row as line 1" in result.stderr
    assert "learned tokens" in result.stderr
    assert "⟦" in result.stdout
    assert not out.exists()
    longer = CliRunner().invoke(app, ["train", *options, "--max-length", "1000", "--dry-run"])
    assert longer.exit_code == 2
    assert "reads at most 512 tokens" in longer.stderr


def test_faults_leave_with_status_2(tiny_llama: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [chat("hi", "hello"), "{"])
    out = tmp_path / "out"
    options = ["--base-model", str(tiny_llama), "--train-path", str(data), "--output-dir", str(out)]
    result = CliRunner().invoke(app, ["train", *options, "--max-length", "256"])
    assert result.exit_code == 2
    assert f"manylora: {data}:2: is not JSON" in result.stderr
    assert not out.exists()
    unknown = CliRunner().invoke(app, ["train", *options, "--lora-r", "none"])
    assert unknown.exit_code == 2
    assert "--lora-r: must be a valid integer" in unknown.stderr


def test_estimate(tiny_llama: Path) -> None:
    options = [
        "--base-model",
        str(tiny_llama),
        "--method",
        "qlora",
        "--max-length",
        "64",
        "--batch-size",
        "2",
    ]
    result = CliRunner().invoke(app, ["estimate", *options])
    assert result.exit_code == 0, result.output
    assert "QLoRA, 4-bit base" in result.stdout
    assert "full, fp32" not in result.stdout
    pairs = CliRunner().invoke(app, ["estimate", *options[:2], *options[4:], "--texts", "2"])
    assert pairs.exit_code == 0, pairs.output
    assert "LoRA, 16-bit base" in pairs.stdout
    assert "full, fp32" not in pairs.stdout
    full = CliRunner().invoke(app, ["estimate", "--method", "full", "--texts", "2"])
    assert full.exit_code == 2
    assert "--texts: method full is for task sft" in full.stderr
    missing = CliRunner().invoke(app, ["estimate", "--base-model", "./none"])
    assert missing.exit_code == 2
