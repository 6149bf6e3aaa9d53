"""What the commands that ask a server share: their common options, how they talk to it, how they end.

Exit status: 0 done; 1 the server refused, or the adapter can't be served; 2 what was given can't be used;
3 no server answers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from manylora.adapters.options.values import parse_list
from manylora.server.cli.output import REFUSED, UNREACHABLE, USAGE, complain, fail
from manylora.server.client.errors import ClientError, Refused, Unreachable
from manylora.server.options.settings import URL_VARIABLE
from manylora.server.options.types import ENV_PREFIX

if TYPE_CHECKING:  # brings httpx, which the help does not need
    from manylora.server.client.client import Client

P = ParamSpec("P")

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLES = [f"{ENV_PREFIX}ADMIN_API_KEY", f"{ENV_PREFIX}API_KEY"]

_Url = Annotated[str, typer.Option("--url", metavar="URL", envvar=URL_VARIABLE, help="Where the server is.")]
_Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=KEY_VARIABLES,
        help="Its key; adapters takes one that manages them.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print what the server answers, one JSON a line.")]


@dataclass(frozen=True)
class Session:
    """One command's server, and how its answers are printed."""

    url: str
    key: str | None
    as_json: bool

    @contextmanager
    def talk(self) -> Iterator[Client]:
        """A client of the command's server; a fault in the block ends the command with its exit status."""
        from manylora.server.client.client import Client  # noqa: PLC0415

        try:
            with Client(self.url, self.key) as client:
                yield client
        except ClientError as error:
            status = UNREACHABLE if isinstance(error, Unreachable) else USAGE
            raise fail(error, REFUSED if isinstance(error, Refused) else status) from None

    def tell(self, answer: Any, line: Callable[[Any], str]) -> None:
        """Print an answer: as JSON if that is wanted, else as ``line`` puts it."""
        typer.echo(json.dumps(answer, ensure_ascii=False) if self.as_json else line(answer))

    def each(
        self, names: Sequence[str], act: Callable[[Client, str], Any], line: Callable[[Any], str]
    ) -> None:
        """Do ``act`` with each name and print the answers; one that is refused does not stop the others."""
        refused = False
        with self.talk() as client:
            for name in names:
                try:
                    self.tell(act(client, name), line)
                except Refused as error:
                    complain(error if name in str(error) else f"{name}: {error}")
                    refused = True
        if refused:
            raise typer.Exit(REFUSED)


def with_session(function: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Make a command with the common options; ``function`` gets what they say as its first argument."""

    @wraps(function)
    def command(*, url: str, api_key: str | None, as_json: bool, **options: Any) -> None:
        function(Session(url, first_key(api_key), as_json), **options)  # type: ignore[call-arg]

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    common = [
        _option("url", _Url, DEFAULT_URL),
        _option("api_key", _Key, None),
        _option("as_json", _Json, False),
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _option(name: str, kind: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def first_key(keys: str | None) -> str | None:
    """The first of the API keys that a variable lists, as the server's does; None if there is none."""
    found = parse_list(keys) if keys else None
    return str(found[0]) if isinstance(found, list) and found else None
