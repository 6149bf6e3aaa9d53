"""HTTP answers in JSON."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response


class Json(Response):
    """A JSON answer, serialized by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)
