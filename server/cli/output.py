"""What the commands share when they speak on stderr: how faults are told, and with which status they end."""

from __future__ import annotations

import typer

# Exit statuses: the server said no; what was given can't be used; no server answers; the engine has died
# (EX_SOFTWARE of sysexits.h).
REFUSED, USAGE, UNREACHABLE, DEAD = 1, 2, 3, 70


def complain(error: Exception | str) -> None:
    """Say on stderr what went wrong, each line after the program's name."""
    for line in str(error).splitlines():
        typer.echo(f"manylora: {line}", err=True)


def fail(error: Exception | str, status: int = USAGE) -> typer.Exit:
    """Print ``error`` as the last word on stderr; raise what is returned to leave with ``status``."""
    complain(error)
    return typer.Exit(status)
