"""Adapters as tables on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from manylora.server.cli.admin.lines import place, share, size
from manylora.server.cli.plain_text import plain

_STATE_STYLE = {"ready": "green", "loading": "yellow", "draining": "yellow", "failed": "red"}
_GAP = 2  # characters between columns
_SPARED = ("running", "tags", "rank", "used", "requests", "kind")  # where a terminal is too narrow, in turn
_SETTINGS = ("rank", "density", "seed", "sign_method")  # of composing
_WHOSE = {"base": "the base's", "adapter": "its own"}
_OF_TEXT = ("chat_template", "tokenizer", "format")  # details that an adapter has of its own or of its base
_WIDE = 10_000  # characters: where no terminal limits them, lines are not broken

Answer = Mapping[str, Any]


def terminal_width() -> int | None:
    """Characters of a line of the terminal; None where stdout is no terminal."""
    return Console().width if sys.stdout.isatty() else None


def print_unbroken(what: RenderableType) -> None:
    """Print to stdout: as wide as the terminal, or in lines that are never broken for a file or pipe."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what)
        return
    console = Console(width=_WIDE, highlight=False)
    with console.capture() as capture:
        console.print(what)
    for line in capture.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")


def adapter_table(adapters: Sequence[Answer], width: int | None = None) -> RenderableType:
    """A table of adapters, one a row; columns that ``width`` characters have no room for are left out."""
    if not adapters:
        return Text("no adapters")
    rows = [_cells(adapter) for adapter in adapters]
    widths = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in rows[0]}
    spared = iter(_SPARED)
    while width is not None and sum(widths.values()) + _GAP * (len(widths) - 1) > width:
        if (heading := next(spared, None)) is None:
            break
        del widths[heading]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for heading in widths:
        numbers, broken = heading in {"rank", "requests", "running"}, heading in {"name", "tags"}
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold", no_wrap=not broken)
    for row in rows:
        table.add_row(*(row[heading] for heading in widths))
    return table


def _cells(adapter: Answer) -> dict[str, Text]:
    traffic = adapter["traffic"]
    cells = {
        "revision": adapter["revision"] or "-",
        "kind": adapter["kind"] or "-",
        "rank": str(adapter["rank"] or "-"),
        "where": place(adapter) + (" (pinned)" if adapter["pinned"] else ""),
        "requests": str(traffic["requests"]),
        "running": str(traffic["running"]),
        "used": ago(adapter["last_used"]),
        "tags": ", ".join(adapter["tags"]),
    }
    texts = {heading: Text(text) for heading, text in cells.items()}
    return {"name": Text(adapter["id"]), "state": _state(adapter), **texts}


def adapter_sheet(adapter: Answer) -> RenderableType:
    """Everything about one adapter: facts first, its revisions below."""
    facts = _facts([(key, value) for key, value in _rows(adapter) if value])
    revisions = adapter["revisions"]
    if not revisions:
        return facts
    return Group(facts, Text(), _revision_table(revisions))


def _rows(adapter: Answer) -> Iterable[tuple[str, RenderableType]]:
    tiers, traffic, publication = adapter["residency"], adapter["traffic"], adapter["publication"]
    yield "name", adapter["id"]
    yield "state", _state(adapter)
    yield "error", adapter["error"] or ""
    if publication is not None and publication["state"] == "loading":
        yield "loading", publication["source"]
    yield "revision", adapter["revision"] or ""
    yield "source", adapter["source"]
    yield (
        "composed",
        composition_text(next((r["lineage"] for r in adapter["revisions"] if r["current"]), None)),
    )
    if adapter["digest"] is not None:
        yield "kind", f"{adapter['kind']}, rank {adapter['rank']}"
        yield "modules", f"{adapter['modules']} of {adapter['total_modules']}"
        yield "trained on", adapter["base_model"] or ""
    yield "pinned", "yes" if adapter["pinned"] else ""
    yield "where", ", ".join(f"{tier} {size(count)}" for tier, count in tiers.items() if count)
    yield "tags", ", ".join(adapter["tags"])
    yield "created", ago(adapter["created"])
    yield "updated", ago(adapter["updated"])
    yield "last used", ago(adapter["last_used"])
    yield "requests", f"{traffic['requests']} ended, {traffic['running']} running"
    yield "tokens", f"{traffic['prompt_tokens']} read, {traffic['generated_tokens']} generated"
    for key, value in adapter["details"].items():
        whose = _WHOSE.get(str(value).partition(":")[0]) if key in _OF_TEXT else None
        yield key.replace("_", " "), whose or _detail(value)


def composition_text(lineage: Any) -> str:
    """What an adapter says it was composed of and how; it is its own word, so anything may stand there."""
    if lineage is None:
        return ""
    try:
        settings = [f"{key} {lineage[key]}" for key in _SETTINGS if key in lineage]
        lost = (
            "exact"
            if lineage["method"] == "linear"
            else f"{share(lineage['energy_lost'])} of the energy lost"
        )
        how = ", ".join([lineage["method"], *settings, lost])
        members = [f"{m['name']}@{m['digest'][:8]}*{m['weight']:g}" for m in lineage["members"]]
    except (KeyError, TypeError, ValueError, IndexError):
        return _detail(lineage)
    return "\n".join([how, *members])


def _detail(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_detail, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_detail(part)}" for key, part in value.items())
    return "" if value is None else str(value)


def _facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for key, value in rows:
        table.add_row(Text(key, style="dim"), Text(plain(value)) if isinstance(value, str) else value)
    return table


def _revision_table(revisions: Sequence[Answer]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("revision", "", "published", "size", "kind", "rank", "source"):
        table.add_column(heading, justify="right" if heading in {"size", "rank"} else "left")
    for revision in revisions:
        table.add_row(
            revision["revision"],
            "current" if revision["current"] else "",
            ago(revision["created"]),
            size(revision["bytes"]),
            revision["kind"],
            str(revision["rank"]),
            Text(plain(revision["source"])),
        )
    return table


def _state(adapter: Answer) -> Text:
    state = adapter["state"]
    return Text(state, style=_STATE_STYLE.get(state, ""))


def ago(then: float | None, now: float | None = None) -> str:
    """How long ago a time in unix seconds was: ``3 min ago``, ``never`` for None."""
    if then is None:
        return "never"
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for length, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
