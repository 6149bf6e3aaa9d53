"""The header that says what an answer is about, or comes from."""

from __future__ import annotations

from urllib.parse import quote


def model_header(model: str) -> dict[str, str]:
    """The header that names a model string; percent-encoded where it has more than ASCII."""
    return {"x-manylora-model": quote(model, safe="@*+:/-._ ")}
