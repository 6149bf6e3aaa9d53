"""The header ``Idempotency-Key``: a request for a job that is sent again makes no second one."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Final

from fastapi import Header

from manylora.adapters.registry.tuning.records import RequestKey
from manylora.adapters.registry.whose import Whose
from manylora.server.api.fine_tuning.body import JobBody
from manylora.server.errors import RequestError

NAME: Final = "Idempotency-Key"
MAX_LENGTH: Final = 255
_KEY = re.compile(rf"[!-~][ -~]{{0,{MAX_LENGTH - 1}}}")  # printable ASCII

KeyHeader = Annotated[
    str | None,
    Header(alias=NAME, description="The same key and body again give the job that there is, and no second."),
]


def request_key(given: str | None, body: JobBody, whose: Whose) -> RequestKey | None:
    """By which a request is known when it is sent again; None without the header.

    Raises:
        RequestError: it is no key.
    """
    if given is None:
        return None
    if _KEY.fullmatch(given) is None:
        raise RequestError(f"'{NAME}' must be 1 to {MAX_LENGTH} printable ASCII characters", NAME)
    asked = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    return RequestKey(_digest(json.dumps([whose.tenant, given])), _digest(asked))


def reused() -> RequestError:
    """The answer where a key comes with another body."""
    message = f"This '{NAME}' was sent before, with another request: take a new key for each job"
    return RequestError(message, NAME, "idempotency_key_reused")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
