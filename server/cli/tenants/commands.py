"""``manylora tenants`` and ``manylora keys``: who shares a running server, and what opens it for them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.cli.tenants.lines import USAGE_HEAD, key_line, made_line, sheet, tenant_line, usage_line
from manylora.server.client.errors import Unusable

tenants = typer.Typer(name="tenants", no_args_is_help=True, help="Manage who shares a running server.")
keys = typer.Typer(name="keys", no_args_is_help=True, help="Manage the keys of a server's tenants.")

Name = Annotated[str, typer.Argument(metavar="TENANT", show_default=False)]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="PATTERN",
        help="An adapter or alias it may use, '*' for any characters; repeatable.",
        show_default=False,
    ),
]
Base = Annotated[
    bool | None,
    typer.Option("--base/--no-base", help="It may ask for the base model itself.", show_default=False),
]
Weight = Annotated[
    float | None,
    typer.Option("--weight", help="Its share of the engine, relative to others'.", show_default=False),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="WHAT=NUMBER",
        help="On each server: max_concurrent_requests, requests_per_minute, tokens_per_minute, "
        "prompt_tokens_per_minute, completion_tokens_per_minute. Repeatable.",
        show_default=False,
    ),
]
Note = Annotated[
    list[str] | None,
    typer.Option("--note", metavar="KEY=VALUE", help="A note of yours; repeatable.", show_default=False),
]
Lifetime = Annotated[
    str | None,
    typer.Option("--expires-in", metavar="TIME", help="3600, 90m, 12h or 30d.", show_default=False),
]

_TIME = re.compile(r"(\d{1,12})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@tenants.command("ls")
@with_session
def list_tenants(session: Session) -> None:
    """List the tenants by name."""
    with session.talk() as client:
        for tenant in client.tenants.list():
            session.tell(tenant, tenant_line)


@tenants.command("show")
@with_session
def show_tenant(session: Session, name: Name) -> None:
    """Show what a tenant may use, and its keys."""
    with session.talk() as client:
        tenant = {**client.tenants.show(name), "keys": client.tenants.keys(name)}
        session.tell(tenant, sheet)


@tenants.command("add")
@with_session
def add_tenant(
    session: Session,
    name: Name,
    *,
    adapter: Adapters = None,
    base: Base = None,
    weight: Weight = None,
    limit: Limits = None,
    note: Note = None,
) -> None:
    """Make a tenant. From then on nobody is let in without a key."""
    with session.talk() as client:
        made = client.tenants.add(
            name,
            adapters=adapter or (),
            base=base is not False,
            weight=1.0 if weight is None else weight,
            limits=limits_of(limit or ()),
            metadata=notes_of(note or ()),
        )
        session.tell(made, tenant_line)


@tenants.command("set")
@with_session
def change_tenant(
    session: Session,
    name: Name,
    *,
    adapter: Adapters = None,
    base: Base = None,
    weight: Weight = None,
    limit: Limits = None,
    note: Note = None,
) -> None:
    """Replace what is given of a tenant's settings; the rest stays. An empty text ends all of a kind."""
    with session.talk() as client:
        if all(each is None for each in (adapter, base, weight, limit, note)):
            raise Unusable(
                "nothing to change is given: --adapter, --base, --no-base, --weight, --limit or --note"
            )
        adapters = None if adapter is None else [each for each in adapter if each]
        changed = client.tenants.change(
            name,
            adapters=adapters,
            base=base,
            weight=weight,
            limits=None if limit is None else limits_of(limit),
            metadata=None if note is None else notes_of(note),
        )
        session.tell(changed, tenant_line)


@tenants.command("rm")
@with_session
def remove_tenant(session: Session, name: Name) -> None:
    """Delete a tenant and revoke all its keys."""
    with session.talk() as client:
        session.tell(client.tenants.delete(name), lambda gone: f"{gone['name']} is deleted, its keys revoked")


@tenants.command("usage")
@with_session
def show_usage(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="TENANT", show_default=False)] = None,
    *,
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="hour, day or total.")] = "total",
    last: Annotated[
        str | None, typer.Option("--last", metavar="TIME", help="30d, 12h.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="COUNT", help="At most so many.")] = 1000,
) -> None:
    """Print what tenants took, or one of them, as comma-separated values; with --json one object a line."""
    with session.talk() as client:
        seconds = seconds_of(last)
        since = None if seconds is None else max(0, int(time.time()) - seconds)
        records = client.tenants.usage(name, since=since, by=by, limit=limit)
        if not session.as_json:
            typer.echo(USAGE_HEAD)
        for record in records:
            session.tell(record, usage_line)


@keys.command("ls")
@with_session
def list_keys(session: Session, name: Name) -> None:
    """List a tenant's keys by what they begin with."""
    with session.talk() as client:
        for key in client.tenants.keys(name):
            session.tell(key, key_line)


@keys.command("add")
@with_session
def add_key(session: Session, name: Name, *, expires_in: Lifetime = None) -> None:
    """Make a key of a tenant and print it: this is the only time that it can be seen."""
    with session.talk() as client:
        session.tell(client.tenants.add_key(name, expires_in=seconds_of(expires_in)), made_line)


@keys.command("rotate")
@with_session
def rotate_key(
    session: Session,
    name: Name,
    key_id: KeyId,
    *,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="TIME", help="How long the old one lasts beside it.")
    ] = "0",
    expires_in: Lifetime = None,
) -> None:
    """Make a key in place of another and print it: this is the only time that it can be seen."""
    with session.talk() as client:
        made = client.tenants.rotate_key(
            name, key_id, overlap=seconds_of(overlap) or 0, expires_in=seconds_of(expires_in)
        )
        session.tell(made, made_line)


@keys.command("revoke")
@with_session
def revoke_key(session: Session, name: Name, key_id: KeyId) -> None:
    """Let a key open nothing from now on."""
    with session.talk() as client:
        session.tell(client.tenants.revoke_key(name, key_id), lambda gone: f"{gone['id']} is revoked")


def seconds_of(text: str | None) -> int | None:
    """Seconds from ``90``, ``15m``, ``12h`` or ``30d``.

    Raises:
        Unusable: it is no time.
    """
    if text is None:
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise Unusable(f"{text!r} is not a time such as 3600, 90m, 12h or 30d")
    return int(found[1]) * _SECONDS[found[2]]


def notes_of(texts: Sequence[str]) -> dict[str, str]:
    """Notes from ``KEY=VALUE``; empty texts are none.

    Raises:
        Unusable: one has no "=".
    """
    texts = [text for text in texts if text]
    for text in texts:
        if "=" not in text:
            raise Unusable(f"{text!r} is not KEY=VALUE")
    return dict(text.split("=", 1) for text in texts)


def limits_of(texts: Sequence[str]) -> dict[str, int]:
    """Limits from ``WHAT=NUMBER``; the server knows what there is to be limited.

    Raises:
        Unusable: one is no such text.
    """
    found = notes_of(texts)
    for what, number in found.items():
        if not (number.isascii() and number.isdecimal() and len(number) < 17):
            raise Unusable(f"{what}={number} is not WHAT=NUMBER")
    return {what: int(number) for what, number in found.items()}
