"""What was found, part by part: on disk as soon as it is known, so that a run that is cut off keeps it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One thing that was looked at."""

    stage: str
    name: str
    ok: bool | None  # None: there is no right and wrong, or it could not be looked at here
    note: str = ""
    rows: Sequence[Row] = field(default=())


def tell(part: Part) -> None:
    """A stage, which runs in a process of its own, tells of a part: one line of JSON on stdout."""
    print(json.dumps(asdict(part)), flush=True)


def heard(line: str) -> Part | None:
    """The part that a line of a stage's output tells of; None if it is something else."""
    if not line.startswith('{"stage":'):
        return None
    return Part(**json.loads(line))


class Results:
    """A JSON file and a page, both rewritten after every part."""

    def __init__(self, directory: Path, name: str, about: Mapping[str, object]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{name}.json"
        self.page = directory / f"{name}.md"
        self._about = dict(about)
        self.parts: list[Part] = []

    def add(self, part: Part) -> None:
        """Keep a part, and say it."""
        self.parts.append(part)
        found = {"bench": "gpu-check", **self._about, "parts": [asdict(p) for p in self.parts]}
        self.path.write_text(json.dumps(found, indent=1) + "\n")
        self.page.write_text(page(self._about, self.parts))
        print(f"{_word(part):8} {part.stage}: {part.name}. {part.note}".rstrip(), file=sys.stderr, flush=True)

    @property
    def faults(self) -> list[Part]:
        """Parts that are not right."""
        return [part for part in self.parts if part.ok is False]


def page(about: Mapping[str, object], parts: Sequence[Part]) -> str:
    """All of it in Markdown."""
    lines = ["# GPU check", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    for part in parts:
        lines += ["", f"## {part.stage}: {part.name}", "", f"**{_word(part)}** {part.note}".rstrip()]
        lines += ["", *_table(part.rows)] if part.rows else []
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([_cell(row.get(name, "")) for name in names] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(part: Part) -> str:
    return {True: "right", False: "WRONG", None: "noted"}[part.ok]
