"""Why a grammar is not taken."""

from __future__ import annotations

from manylora.server.errors import RequestError


class GrammarRefused(Exception):
    """A grammar that answers can't be held to. ``str()`` is a clause; ``path`` leads to what is at fault."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def blamed(self, param: str) -> RequestError:
        """What the request is told in which ``param`` holds the grammar."""
        where = f"{param}{self.path}"
        return RequestError(f"'{where}': {self}", where, "invalid_grammar")
