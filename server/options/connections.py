"""How connections are made, and how long a slow one is borne."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.server.options.types import CONNECTIONS, AutoCount, Options, Seconds, Size


class ConnectionOptions(Options):
    """How connections are made, and how long a slow one is borne."""

    uds: Annotated[
        UserPath | None, Option(CONNECTIONS, "PATH", "Listen on a Unix socket instead.", default="none")
    ] = None
    root_path: Annotated[
        str,
        Option(CONNECTIONS, "PREFIX", "Of paths, taken off by a proxy.", default="none"),
        Field(max_length=1024, pattern=r"^(/[A-Za-z0-9._~-]+)*/?$"),
    ] = ""
    ssl_certfile: Annotated[
        UserPath | None, Option(CONNECTIONS, "FILE", "Speak TLS with this certificate.", default="no TLS")
    ] = None
    ssl_keyfile: Annotated[
        UserPath | None, Option(CONNECTIONS, "FILE", "Its private key.", default="in that file")
    ] = None
    ssl_keyfile_password: Annotated[
        SecretStr | None, Option(CONNECTIONS, "TEXT", "Opens the private key.", default="none")
    ] = None
    max_connections: Annotated[
        int,
        Option(CONNECTIONS, "N", "Beyond: only /health and /ready."),
        Field(ge=1, le=1_000_000),
    ] = 4096
    max_connections_per_address: Annotated[
        AutoCount, Option(CONNECTIONS, "N", "From one address.", default="half of them")
    ] = None
    head_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time for a request's headers.")] = 20.0
    body_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time without a byte of a body.")] = 30.0
    write_timeout: Annotated[Seconds, Option(CONNECTIONS, "S", "Time without a byte read by a client.")] = (
        60.0
    )
    keep_alive_timeout: Annotated[
        # Longer than common proxies keep theirs, so that the proxy is the one to close.
        Seconds,
        Option(CONNECTIONS, "S", "Time between two requests."),
    ] = 75.0
    min_transfer_rate: Annotated[Size, Option(CONNECTIONS, "SIZE", "A second, of bodies and readers.")] = 1024
