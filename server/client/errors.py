"""What can go wrong when a program asks a server.

ClientError
├── Unreachable   nothing answers at the URL, or what answers is no manylora server
├── Refused       the server said no; its message, status and code
└── Unusable      what was given locally can't be sent
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of what can go wrong when a server is asked. ``str()`` is for the user."""


class Unreachable(ClientError):
    """Nobody answers at the URL, or what answers is no manylora server."""


class Refused(ClientError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        code: the code of the error, as in docs/api.md; ``None`` where it has none.
    """

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unusable(ClientError):
    """A path or value that was given locally can't be used."""
