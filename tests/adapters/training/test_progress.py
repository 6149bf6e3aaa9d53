"""The bar on the terminal."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from manylora.adapters.training.run.train import train
from tests.support.training_runs import LABELS, config

pytestmark = pytest.mark.slow


def test_the_bar_tells_losses_speed_and_time_left(tiny_llama: Path, tmp_path: Path) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=160, color_system=None)
    train(config(tiny_llama, tmp_path), console=console)
    (line,) = re.findall(r"training [^\r\n]* 10/10 .*", shown.getvalue())[-1:]
    assert re.search(r"loss \d\.\d{3}  eval loss \d\.\d{3}  \d+ tokens/s +(\d+:)?\d+:\d\d", line)


def test_classes_have_a_speed_too(tiny_llama: Path, tmp_path: Path) -> None:
    result = train(config(tiny_llama, tmp_path, LABELS, task="classification", max_steps=3))
    assert result is not None
    speeds = [line["tokens_per_second"] for line in result.metrics if "tokens_per_second" in line]
    assert len(speeds) == 2
    assert min(speeds) > 0
