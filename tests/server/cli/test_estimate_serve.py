"""``manylora estimate serve`` at the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manylora.server.cli.main import app


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["estimate", *arguments], env={"COLUMNS": "120"})
    return done.exit_code, done.output


def test_what_fits_which_card(tiny_llama: Path) -> None:
    status, text = run(
        "serve", "--model", str(tiny_llama), "--gpu", "24GiB", "--gpu", "768MiB", "--max-model-len", "64"
    )
    assert status == 0, text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert [(r[0].strip(), r[1].strip()) for r in rows] == [
        (card, form) for card in ("24.0 GiB", "0.8 GiB") for form in ("bf16", "int8", "nf4")
    ]
    assert all(re.search(r"[1-9][\d,]*", row[4]) for row in rows[:3]), text
    assert all("does not fit: " in "".join(row) for row in rows[3:]), text


def test_what_fits_several_cards(tiny_llama: Path) -> None:
    status, text = run(
        "serve", "--model", str(tiny_llama), "--gpu", "24GiB", "--max-model-len", "64",
        "--tensor-parallel-size", "2",
    )  # fmt: skip
    assert status == 0, text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["bf16"]
    assert "On 2 cards" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensor-parallel-size", "5"], "--tensor-parallel-size 5: 9 attention heads don't divide"),
        (["--gpu", "large"], "--gpu: must be a size such as 2GiB"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    status, text = run("serve", *arguments)
    assert status == 2
    assert message in " ".join(text.split()), text


def test_training_is_estimated_as_before(tiny_llama: Path) -> None:
    status, text = run("--base-model", str(tiny_llama), "--r", "4")
    assert status == 0, text
    assert "Memory to train" in text
