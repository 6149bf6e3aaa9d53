"""metrics.jsonl: what a run measures while it runs, one JSON object a line.

Each has ``kind`` "train", "eval", "sample", "stopped" (early, where the run ended before its last step) or
"kept" (which step was published, where it is not the last), the ``step`` and the seconds since the run began.
Lines are written whole, one at a time, so that the file can be followed with ``tail -f``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # which is slow to import, for a server that only reads
    from manylora.adapters.training.data.prompts import Prompt

STOPPED: Final = "stopped"


class MetricsLog:
    """Writes what a run measures to its metrics.jsonl, line by line."""

    def __init__(self, path: Path, told: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """``told`` is called with each line that is written."""
        self.path = path
        self._told = told
        self._start = time.monotonic()

    def rewind(self, step: int) -> None:
        """Forget lines beyond ``step`` and one that was cut off: a resumed run writes them again."""
        lines = read_metrics(self.path)
        kept = [line for line in lines if line["step"] <= step and not _is_of_the_end(line)]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._start = time.monotonic() - max((line["seconds"] for line in kept), default=0.0)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"kind": kind, "step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._told is not None:
            self._told(line)


def _is_of_the_end(line: Mapping[str, Any]) -> bool:
    """Whether it is written once the steps are done, whatever step it tells of."""
    return line["kind"] == "kept" or bool(line.get("published"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that is cut off at the end is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def sample_line(prompt: Prompt, base: str, adapter: str, *, published: bool = False) -> dict[str, Any]:
    """What is logged of a prompt that both have answered; ``published``: by the weights that come out."""
    row = {} if prompt.line is None else {"expected": prompt.expected, "line": prompt.line}
    return {
        "prompt": prompt.text,
        **row,
        "base": base,
        "adapter": adapter,
        **({"published": True} if published else {}),
    }


def early_stop(lines: Iterable[Mapping[str, Any]]) -> str | None:
    """Where and why a run ended before its last step; None if it did not."""
    line = next((line for line in lines if line["kind"] == STOPPED), None)
    return None if line is None else stopped_text(line)


def stopped_text(line: Mapping[str, Any]) -> str:
    """What a line of that kind says."""
    return (
        f"at step {line['step']} of {line['planned_steps']} the held-out loss had not fallen for "
        f"{line['evaluations']} evaluations"
    )
