"""``manylora adapters``: manage the adapters of a running server; check, convert and recover without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.server.cli.admin.adding import add
from manylora.server.cli.admin.checking import check
from manylora.server.cli.admin.converting import convert
from manylora.server.cli.admin.exporting import export
from manylora.server.cli.admin.recovering import recover
from manylora.server.cli.admin.session import Session, with_session
from manylora.server.client.errors import Unusable

if TYPE_CHECKING:  # brings httpx, which the help does not need
    from manylora.server.client.client import Client

adapters = typer.Typer(name="adapters", no_args_is_help=True, help="Manage the adapters of a running server.")

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", show_default=False)]

adapters.command()(with_session(add))
adapters.command()(with_session(export))
adapters.command()(recover)
adapters.command()(convert)
adapters.command()(check)


@adapters.command("ls")
@with_session
def list_adapters(
    session: Session,
    prefix: Annotated[str | None, typer.Argument(metavar="PREFIX", show_default=False)] = None,
    *,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only those with this tag.")] = None,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="loading, ready, draining or failed.")
    ] = None,
    resident: Annotated[
        bool | None,
        typer.Option("--resident/--not-resident", help="On the device, or not.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="COUNT", help="At most so many.")] = None,
) -> None:
    """List the adapters, or those whose name begins with PREFIX."""
    with session.talk() as client:
        found = list(client.list(prefix, tag=tag, state=state, resident=resident, limit=limit))
    if session.as_json:
        for adapter in found:
            session.tell(adapter, str)
        return
    from manylora.server.cli.admin.tables import adapter_table, print_unbroken, terminal_width  # noqa: PLC0415

    print_unbroken(adapter_table(found, terminal_width()))


@adapters.command("show")
@with_session
def show_adapter(session: Session, name: Name) -> None:
    """Show one adapter: state, revisions, where its bytes are, what it has served."""
    with session.talk() as client:
        found = client.show(name)
    if session.as_json:
        session.tell(found, str)
        return
    from manylora.server.cli.admin.tables import adapter_sheet, print_unbroken  # noqa: PLC0415

    print_unbroken(adapter_sheet(found))


@adapters.command("rm")
@with_session
def remove(
    session: Session,
    names: Names,
    deadline: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long running requests may take to end.")
    ] = 30.0,
) -> None:
    """Delete adapters: refuse new requests, let running ones finish, free what they took."""
    from manylora.server.cli.admin.lines import deleted_line  # noqa: PLC0415

    session.each(names, lambda client, name: client.delete(name, deadline), deleted_line)


@adapters.command()
@with_session
def pin(session: Session, names: Names) -> None:
    """Bring adapters to the device and keep them there."""
    _act(session, names, lambda client, name: client.pin(name))


@adapters.command()
@with_session
def unpin(session: Session, names: Names) -> None:
    """Let adapters be evicted again."""
    _act(session, names, lambda client, name: client.unpin(name))


@adapters.command()
@with_session
def prefetch(session: Session, names: Names) -> None:
    """Bring adapters in before they are asked for."""
    _act(session, names, lambda client, name: client.prefetch(name))


@adapters.command()
@with_session
def evict(session: Session, names: Names) -> None:
    """Take adapters off the device; the next request brings them back."""
    _act(session, names, lambda client, name: client.evict(name))


def _act(session: Session, names: Sequence[str], act: Callable[[Client, str], Any]) -> None:
    from manylora.server.cli.admin.lines import residency_line  # noqa: PLC0415

    session.each(names, act, residency_line)


@adapters.command()
@with_session
def rollback(
    session: Session,
    name: Name,
    revision: Annotated[
        str | None,
        typer.Argument(metavar="REVISION", help="Default: the one before the current.", show_default=False),
    ] = None,
) -> None:
    """Make an adapter serve an earlier revision again."""
    from manylora.server.cli.admin.lines import serving_line  # noqa: PLC0415

    session.each([name], lambda client, n: client.rollback(n, revision), serving_line)


@adapters.command()
@with_session
def share(
    session: Session,
    name: Name,
    tenants: Annotated[
        list[str] | None,
        typer.Argument(metavar="TENANT", help="'*' is all; none: share it no more.", show_default=False),
    ] = None,
) -> None:
    """Say which tenants may use an adapter besides the one whose it is."""
    with session.talk() as client:
        found = client.share(name, tenants or ())
        session.tell(found, lambda told: f"{told['id']}: {', '.join(told['shared_with']) or 'not shared'}")


@adapters.command()
@with_session
def alias(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET",
            help="A model string, or several, each with its share: a=0.9 b@3f9a1c2e=0.1",
            show_default=False,
        ),
    ] = None,
    rm: Annotated[bool, typer.Option("--rm", help="Delete the alias NAME.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Count afresh, also for targets that stay.")] = False,
) -> None:
    """Make NAME stand for another name, or split it; without targets show how its arms do."""
    from manylora.server.cli.admin.lines import alias_line, arms_of  # noqa: PLC0415

    with session.talk() as client:
        if rm and (name is None or targets):
            raise Unusable("--rm takes the name of an alias and nothing else")
        if reset and (rm or not targets):
            raise Unusable("--reset goes with the targets of an alias")
        if name is None:
            for found in client.aliases():
                session.tell(found, alias_line)
        elif rm:
            session.tell(client.delete_alias(name), lambda _: f"{name} is deleted")
        elif targets:
            session.tell(client.set_alias(name, arms_of(targets), reset=reset), alias_line)
        else:
            _show_arms(session, client.alias(name))


def _show_arms(session: Session, found: Any) -> None:
    from manylora.server.cli.admin.lines import alias_line  # noqa: PLC0415

    session.tell(found, alias_line)
    if not session.as_json:
        from manylora.server.cli.admin.arms import arms_table  # noqa: PLC0415
        from manylora.server.cli.admin.tables import print_unbroken  # noqa: PLC0415

        print_unbroken(arms_table(found))
