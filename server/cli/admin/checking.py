"""``manylora adapters check``: what an adapter is, what it costs and why it is refused, without a server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from manylora.adapters.errors import AdapterError, SourceMissing
from manylora.server.cli.admin.lines import share, size
from manylora.server.cli.output import REFUSED, fail
from manylora.server.cli.plain_text import plain
from manylora.server.errors import ServerError


def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A directory, a .gguf or .safetensors file, or a repository: ORG/NAME or hf://….",
            show_default=False,
        ),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The base: a directory or a Hub id. Its config is enough.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Where models are kept.", show_default=False),
    ] = None,
) -> None:
    """Say what an adapter is, whether a base can serve it, what it would cost, and what is refused and why.

    Exit status: 0 it can be served (without --model: nothing speaks against it), 1 it can't, 2 there is no
    adapter or no such base.
    """
    try:
        found = _check(source, model, data_dir)
    except (ServerError, AdapterError) as error:
        raise fail(error) from None
    typer.echo(json.dumps(found) if as_json else "\n".join(_lines(found)))
    if found["faults"]:
        raise typer.Exit(REFUSED)


def _check(source: str, model: str | None, data_dir: Path | None) -> dict[str, Any]:
    from manylora.server.cli.admin.check_report import report  # noqa: PLC0415  (brings torch)
    from manylora.server.cli.admin.converting import base_of  # noqa: PLC0415

    base, parameters = (None, 0) if model is None else base_of(model, data_dir)
    with _fetched(source) as path:
        return {"source": source, **report(path, base, parameters)}


@contextmanager
def _fetched(source: str) -> Iterator[Path]:
    """The adapter on this machine: where it lies, or a copy that is gone afterwards.

    Raises:
        SourceMissing, SourceForbidden: there is none.
    """
    path = Path(source).expanduser()
    if "://" not in source and path.exists():
        yield path
        return
    if "://" not in source and (source.startswith((".", "/", "~")) or source.count("/") < 1):
        raise SourceMissing(f"{source}: no such file or directory")
    from manylora.adapters.sources.fetching import SourcePolicy, fetch  # noqa: PLC0415  (slow to import)

    url = source if "://" in source else f"hf://{source}"
    policy = SourcePolicy(roots=(Path("/"),), repositories=("*",), urls=(url,))
    with tempfile.TemporaryDirectory(prefix="manylora-") as name:
        fetch(url, Path(name), policy)
        yield Path(name)


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report for people, a fact a line."""
    rank = f", rank {found['rank']}" if found["rank"] is not None else ""
    yield plain(f"{found['source']}: {found['kind'] or 'of no kind that is known'}{rank}")
    if found["trained_on"]:
        yield plain(f"trained on: {found['trained_on']}")
    if found["converted_from"] is not None:
        rules = ", ".join(found["converted_from"]["rules"]) or "another file name"
        yield plain(f"converted from: {found['converted_from']['format']} ({rules})")
    for note in found["notes"]:
        yield plain(f"note: {note}")
    base = found["base"]
    if base is None:
        yield "base: not checked (--model MODEL)"
    elif found["faults"]:
        yield plain(f"base: {base['name']} ({base['architecture']}) can't serve it")
    else:
        yield plain(
            f"base: {base['name']} ({base['architecture']}) can serve it, "
            f"{found['modules']} of {found['total_modules']} modules"
        )
    cost = found["cost"]
    if cost is not None:
        memory = ", ".join(
            f"{size(count)} in {dtype}" for dtype, count in cost["adapter_memory_bytes"].items()
        )
        yield f"adapter memory: {memory}"
        yield f"a token (estimate): reads {share(cost['share_of_base'])} of the base's bytes in addition"
        if cost["computed_at_load"]:
            yield plain(f"computed at load: {', '.join(cost['computed_at_load'])}")
    for fault in found["faults"]:
        yield plain(f"refused: {fault}")
