"""``manylora keys``: what opens a running server for its tenants."""

from __future__ import annotations

from typing import Annotated

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.cli.tenants.arguments import Name, seconds_of
from manylora.server.cli.tenants.lines import key_line, made_line

keys = typer.Typer(name="keys", no_args_is_help=True, help="Manage the keys of a server's tenants.")

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]
Lifetime = Annotated[
    str | None,
    typer.Option("--expires-in", metavar="TIME", help="3600, 90m, 12h or 30d.", show_default=False),
]
Scopes = Annotated[
    list[str],
    typer.Option(
        "--scope",
        metavar="WHAT",
        help="infer: ask for answers; manage: publish, change, share and delete the tenant's own adapters; "
        "admin: everything. Repeatable.",
    ),
]


@keys.command("ls")
@with_session
def list_keys(session: Session, name: Name) -> None:
    """List a tenant's keys by what they begin with."""
    with session.talk() as client:
        for key in client.tenants.keys(name):
            session.tell(key, key_line)


@keys.command("add")
@with_session
def add_key(
    session: Session,
    name: Name,
    *,
    expires_in: Lifetime = None,
    scope: Scopes = ["infer"],  # noqa: B006
) -> None:
    """Make a key of a tenant and print it: this is the only time that it can be seen."""
    with session.talk() as client:
        made = client.tenants.add_key(name, expires_in=seconds_of(expires_in), scopes=scope)
        session.tell(made, made_line)


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
def revoke_key(
    session: Session,
    name: Name,
    key_id: KeyId,
    *,
    end: Annotated[bool, typer.Option("--end", help="End the requests that run with it, too.")] = False,
) -> None:
    """Let a key open nothing from now on."""
    with session.talk() as client:
        gone = client.tenants.revoke_key(name, key_id, end=end)
        session.tell(gone, lambda gone: f"{gone['id']} is revoked")
