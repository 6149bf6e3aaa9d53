"""When a file goes, as bodies in JSON say it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody


class ExpiresAfter(RequestBody):
    """Seconds after it was made."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(ge=limits.MIN_EXPIRY, le=limits.MAX_EXPIRY)
