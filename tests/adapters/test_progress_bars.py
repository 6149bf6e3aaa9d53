"""Progress bars: what stays, what passes, and what a file or pipe gets."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import TimeElapsedColumn

from manylora.adapters.progress_bars import BytesColumn, progress_bars
from manylora.adapters.training.trainers.callbacks import BarCallback


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, width=100, color_system=None), written


@pytest.mark.parametrize(("passing", "terminal", "told"), [(False, False, True), (True, False, False)])
def test_off_a_terminal_only_what_stays_is_told(passing: bool, terminal: bool, told: bool) -> None:
    where, written = console(terminal=terminal)
    with progress_bars(console=where, passing=passing) as bars:
        bars.update(bars.add_task("Downloading", total=4), completed=4)
    assert ("Downloading" in written.getvalue()) is told
    assert ("100%" in written.getvalue()) is told


def test_bytes_are_counted_where_their_number_is_known() -> None:
    where, written = console(terminal=False)
    with progress_bars(BytesColumn(), TimeElapsedColumn(), console=where) as bars:
        bars.update(bars.add_task("sending", total=4096), completed=1024)
        bars.add_task("loading", total=None)
    sending, loading = written.getvalue().splitlines()
    assert "1.0/4.0 KiB" in sending
    assert "iB" not in loading


def test_the_bar_of_a_training_run_shows_steps_and_figures() -> None:
    where, written = console(terminal=False)
    bar = BarCallback(where)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=0)
    bar.on_train_begin(None, state, None)
    state.global_step = 2
    bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, logs={"loss": 1.5, "eval_loss": 1.25})
    bar.on_train_end(None, state, None)
    (line,) = written.getvalue().splitlines()
    assert line.startswith("training ")
    assert " 2/4 loss 1.500  eval loss 1.250 " in line
