"""``manylora tenants``: who shares a running server, and what they took of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.cli.tenants.arguments import Name, Settings, read_tenants, seconds_of
from manylora.server.cli.tenants.lines import (
    USAGE_HEAD,
    audit_line,
    change_lines,
    sheet,
    tenant_line,
    usage_line,
)
from manylora.server.client.errors import Unusable

tenants = typer.Typer(name="tenants", no_args_is_help=True, help="Manage who shares a running server.")

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
        help="max_concurrent_requests, requests_per_minute, tokens_per_minute, prompt_tokens_per_minute, "
        "completion_tokens_per_minute, monthly_tokens, adapter_bytes, file_bytes. Repeatable.",
        show_default=False,
    ),
]
AdapterLimits = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter-limit",
        metavar="ADAPTER=WHAT=NUMBER",
        help="What it may take with one adapter, or a pattern of them: 'acme/*=requests_per_minute=5'. "
        "Repeatable.",
        show_default=False,
    ),
]
DefaultAdapter = Annotated[
    str | None,
    typer.Option("--default-adapter", metavar="MODEL", help="Stands for the base model.", show_default=False),
]
Note = Annotated[
    list[str] | None,
    typer.Option("--note", metavar="KEY=VALUE", help="A note of yours; repeatable.", show_default=False),
]


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
    default_adapter: DefaultAdapter = None,
    weight: Weight = None,
    limit: Limits = None,
    adapter_limit: AdapterLimits = None,
    note: Note = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="What is called TENANT/… already is its own from now on.")
    ] = False,
) -> None:
    """Make a tenant. From then on nobody is let in without a key."""
    with session.talk() as client:
        settings = Settings(adapter, base, default_adapter, weight, limit, adapter_limit, note).fields()
        session.tell(client.tenants.add(name, adopt=adopt, **settings), tenant_line)


@tenants.command("set")
@with_session
def change_tenant(
    session: Session,
    name: Name,
    *,
    adapter: Adapters = None,
    base: Base = None,
    default_adapter: DefaultAdapter = None,
    weight: Weight = None,
    limit: Limits = None,
    adapter_limit: AdapterLimits = None,
    note: Note = None,
) -> None:
    """Replace what is given of a tenant's settings; the rest stays. An empty text ends all of a kind."""
    with session.talk() as client:
        settings = Settings(adapter, base, default_adapter, weight, limit, adapter_limit, note).fields()
        if not settings:
            raise Unusable("nothing to change is given: see manylora tenants set --help")
        session.tell(client.tenants.change(name, **settings), tenant_line)


@tenants.command("apply")
@with_session
def apply_tenants(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change.")] = False,
) -> None:
    """Make tenants what a YAML file says, as serve --tenants does, and print what was different."""
    with session.talk() as client:
        for change in client.tenants.put(read_tenants(file), dry_run=dry_run):
            session.tell(change, change_lines)


@tenants.command("rm")
@with_session
def remove_tenant(
    session: Session,
    name: Name,
    *,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="And the adapters and aliases it has.")
    ] = False,
) -> None:
    """Delete a tenant and revoke all its keys."""
    with session.talk() as client:
        gone = client.tenants.delete(name, adapters=adapters)
        session.tell(gone, lambda gone: f"{gone['name']} is deleted, its keys revoked")


@tenants.command("audit")
@with_session
def show_audit(
    session: Session,
    *,
    who: Annotated[str | None, typer.Option("--who", metavar="KEY_ID", show_default=False)] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="TENANT", show_default=False)] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", show_default=False)] = None,
    last: Annotated[
        str | None, typer.Option("--last", metavar="TIME", help="30d, 12h.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="COUNT", help="At most so many.")] = 100,
) -> None:
    """Print what was done to adapters, aliases and tenants, by whom, the latest first."""
    with session.talk() as client:
        seconds = seconds_of(last)
        since = None if seconds is None else max(0.0, time.time() - seconds)
        for record in client.tenants.audit(since=since, limit=limit, who=who, tenant=tenant, target=target):
            session.tell(record, audit_line)


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
