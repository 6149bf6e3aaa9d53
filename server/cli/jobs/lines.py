"""Jobs and events as lines of text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from manylora.server.cli.plain_text import plain

_BAR: Final = 24  # characters
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 40  # of a curve
_SHORT: Final = 160  # characters of a sample that are shown
_SAMPLE: Final = ("prompt", "expected", "base", "trained")


def job_line(job: Mapping[str, Any]) -> str:
    """A job: what it is, how far it is, and what it came to."""
    parts = [job["id"], f"{job['status']:<16}", job["model"]]
    progress = job.get("progress")
    if job["status"] == "running" and progress:
        parts.append(f"{bar(progress)} {left(job)}".rstrip())
    if job["fine_tuned_model"]:
        parts.append(f"→ {job['fine_tuned_model']}")
    if job.get("grades"):
        parts.append(_grade(job["grades"]))
    if job["error"]:
        parts.append(f"{job['error']['code']}: {job['error']['message']}")
    return plain("  ".join(parts))


def _grade(grades: Mapping[str, Any]) -> str:
    """What a job's grader gave to base and result."""
    last = next((each for each in grades["steps"] if each["published"]), None)
    if last is None or last["trained"] is None:
        return "(no grades)"
    return f"(grade: base {last['base']:.3f}, trained {last['trained']:.3f})"


def estimate_line(found: Mapping[str, Any]) -> str:
    """What a job would take."""
    numbers = ", ".join(f"{name} {value}" for name, value in found["hyperparameters"].items())
    return (
        f"{found['rows']} rows, {found['trained_tokens']} tokens in {found['steps']} steps ({numbers}); "
        f"about {found['seconds']:.0f} s and {found['memory_bytes'] / 1e9:.2f} GB"
    )


def event_text(event: Mapping[str, Any]) -> str:
    """An event with its time; of a sample, a line for what was asked and one for each answer."""
    at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
    mark = "" if event["level"] == "info" else f"{event['level']}: "
    lines = [f"{at}  {mark}{event['message']}"]
    if event["type"] == "sample":
        found = [(name, event["data"].get(name)) for name in _SAMPLE]
        lines += [f"          {name:<9} {_short(text)}" for name, text in found if text is not None]
    return "\n".join(map(plain, lines))


def _short(text: str) -> str:
    """A text in one line, its end left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else f"{line[: _SHORT - 1]}…"


def bar(progress: Mapping[str, Any]) -> str:
    """How many of a job's steps are taken, and its losses."""
    done = progress["step"] / max(1, progress["total_steps"])
    filled = round(done * _BAR)
    losses = [f"{name.replace('_', ' ')} {progress[name]:.3f}" for name in ("train_loss", "valid_loss")
              if name in progress]  # fmt: skip
    speed = progress.get("tokens_per_second")
    told = losses + ([] if speed is None else [f"{speed:.0f} tokens/s"])
    return f"{'█' * filled}{'░' * (_BAR - filled)} {progress['step']}/{progress['total_steps']} " + "  ".join(
        told
    )


def left(job: Mapping[str, Any]) -> str:
    """The time that a job still takes, as it is expected."""
    finish = job.get("estimated_finish")
    return "" if finish is None else f"{max(0, int(finish - time.time()))} s left"


def curve(losses: Sequence[float]) -> str:
    """Losses as a line of blocks, the highest as the tallest."""
    if not losses:
        return ""
    each = max(1, len(losses) / _WIDTH)
    points = [losses[int(index * each)] for index in range(min(_WIDTH, len(losses)))]
    low, high = min(points), max(points)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((point - low) * scale)] for point in points)
