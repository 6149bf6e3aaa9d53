"""Control tokens that messages spell out: who may have them recognized as such."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from pydantic import Field

from manylora.server.api.http.scopes import ADMIN, caller_scope
from manylora.server.errors import AdminKeyNeeded, RequestError

_NAME = "allow_special_tokens"

AllowSpecialTokens = Annotated[
    bool | None,
    Field(
        description="Whether control tokens that messages spell out (<|im_end|>) are recognized as such. "
        "With true this takes an admin key. Default: as the server is configured; only with messages."
    ),
]


def check_special_tokens(request: Request, wanted: bool | None, with_messages: bool = True) -> None:
    """Refuse ``allow_special_tokens`` where it has no meaning, and from callers who may not ask for it.

    Raises:
        RequestError: the request has no messages.
        AdminKeyNeeded: it takes an admin key.
    """
    if wanted is not None and not with_messages:
        raise RequestError(f"'{_NAME}' goes with 'messages': a prompt's are recognized anyway", _NAME)
    if wanted and caller_scope(request.scope) < ADMIN:
        raise AdminKeyNeeded(f"'{_NAME}' may only be set with an admin key")
