"""Where a server listens: an address or a Unix socket, in clear or with TLS, with enough descriptors."""

from __future__ import annotations

import logging
import resource
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manylora.server.api.connections.connections import RESERVED
from manylora.server.errors import ConfigError
from manylora.server.options.settings import Settings

logger = logging.getLogger(__name__)

OTHER_DESCRIPTORS = 256  # that are no connections: files, databases, child processes


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """A bound socket, not yet listening: a place that is taken is found before the model is loaded.

    Raises:
        ConfigError: there is no such address here, or it is taken.
    """
    where = settings.uds
    with bound(settings.host, settings.port) if where is None else _unix_socket(where) as listener:
        try:
            yield listener
        finally:
            if where is not None:
                where.unlink(missing_ok=True)


def bound(host: str, port: int, host_option: str = "--host", port_option: str = "--port") -> socket.socket:
    """A socket that is bound to an address, which those options name.

    Raises:
        ConfigError: there is no such address here, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host_option} {host}: {error.strerror or error}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host_option} {host} {port_option} {port}: {error.strerror}") from error
    return listener


def _unix_socket(path: Path) -> socket.socket:
    """A socket at ``path``; one that a server left there when it was killed is replaced."""
    if _is_left_over(path):
        path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--uds {path}: {error.strerror or error}") from error
    return listener


def _is_left_over(path: Path) -> bool:
    """Whether there is a socket at ``path`` that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What encrypts the connections; None for plain HTTP.

    Raises:
        ConfigError: the certificate or its key can't be used.
    """
    if settings.ssl_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secret = settings.ssl_keyfile_password
    password = "" if secret is None else secret.get_secret_value()
    try:
        # A password is always given, so that nobody is asked for one at the terminal.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        keyfile = "" if settings.ssl_keyfile is None else f" --ssl-keyfile {settings.ssl_keyfile}"
        raise ConfigError(f"--ssl-certfile {settings.ssl_certfile}{keyfile}: {reason}") from None
    return context


def room_for_connections(wanted: int) -> int:
    """How many of ``wanted`` connections the process has descriptors for, after asking for more of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        goal = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    room = max(soft - RESERVED - OTHER_DESCRIPTORS, soft // 4, 1)
    logger.warning("%d connections instead of %d: the limit of open files is %d", room, wanted, soft)
    return room
