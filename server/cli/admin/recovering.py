"""``manylora adapters recover``: names for the revisions in a store whose registry was lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manylora.adapters.errors import AdapterError
from manylora.server.cli.output import REFUSED, fail
from manylora.server.cli.plain_text import plain
from manylora.server.errors import ServerError
from manylora.server.options.loading import load_settings

if TYPE_CHECKING:  # brings SQLAlchemy, which the help does not need
    from manylora.adapters.registry.name_recovery import Found


def recover(
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="The server's --data-dir.", show_default=False),
    ] = None,
    registry_url: Annotated[
        str | None,
        typer.Option(
            "--registry-url", metavar="URL", help="The server's --registry-url, if any.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Give revisions that no name has their names back, after the registry was lost.

    Each gets the names it was published under, unless they mean something else by now; else one made of its
    digest. No server may be using the data directory. What is named already stays as it is.
    """
    given = {"data_dir": data_dir, "registry_url": registry_url}
    try:
        settings = load_settings({name: value for name, value in given.items() if value is not None})
    except ServerError as error:
        raise fail(error) from None
    root = settings.data_dir.expanduser() / "adapters"
    if not root.is_dir():
        raise fail(f"there is no revision store at {root}")
    try:
        found = _recover(root, settings.registry, dry_run=dry_run)
    except AdapterError as error:
        raise fail(error, REFUSED) from None
    for each in found:
        typer.echo(_line(each))
    count = len({each.restored.facts.digest for each in found})
    typer.echo(f"revisions without a name that {'would get' if dry_run else 'got'} one: {count}")


def _recover(root: Path, url: str, *, dry_run: bool) -> list[Found]:
    from manylora.adapters.registry.name_recovery import (  # noqa: PLC0415
        find_names,
        recover_names,
        refuse_while_used,
    )
    from manylora.adapters.registry.registry import Registry  # noqa: PLC0415
    from manylora.adapters.store.store import RevisionStore  # noqa: PLC0415

    with RevisionStore(root) as store:
        refuse_while_used(store)
        with Registry(url, owner=store.owner) as registry:
            return find_names(registry, store) if dry_run else recover_names(registry, store)


def _line(found: Found) -> str:
    restored = found.restored
    why = "" if found.recorded else " (the name is made up)"
    source = f" from {restored.source}" if restored.source else ""
    return plain(f"{restored.name}@{restored.facts.digest[:8]}{source}{why}")
