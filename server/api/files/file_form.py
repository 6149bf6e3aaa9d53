"""The forms in which files and parts of files are sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from manylora.adapters.format.faults import shown
from manylora.server.api.http import limits
from manylora.server.api.http.multipart import Form
from manylora.server.errors import BodyTooLarge, RequestError

PURPOSES: Final = ("fine-tune", "batch", "user_data", "evals")
BATCH_EXPIRY: Final = limits.MAX_EXPIRY  # seconds that a batch's requests stay if nothing else is said
_MADE: Final = "such files are made by the server"
_REFUSED: Final[Mapping[str, str]] = {
    "assistants": "there are no assistants here: 'user_data' keeps any file",
    "vision": "the models here read text: 'fine-tune' is for examples, 'user_data' keeps any file",
    "fine-tune-results": _MADE,
    "batch_output": _MADE,
    "assistants_output": _MADE,
}
_FIELDS: Final = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_LAST_STEP = re.compile(r"[^/\\]*\Z")

FILE_FORM: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
}


FILE_BODY: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FILE_FORM}}}
}


def asked_of(form: Form) -> tuple[str, int | None]:
    """The purpose, and after how many seconds the file is to go.

    Raises:
        RequestError: the form does not say it so.
    """
    check_fields(form, _FIELDS)
    fields = dict(form.fields)
    purpose = checked_purpose(fields.get("purpose"))
    seconds = fields.get("expires_after[seconds]")
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise RequestError("'expires_after[anchor]' must be created_at", "expires_after[anchor]")
    if seconds is None:
        return purpose, default_expiry(purpose)
    digits = seconds.isascii() and seconds.isdecimal()
    if not digits or not limits.MIN_EXPIRY <= int(seconds[:12]) <= limits.MAX_EXPIRY:
        raise RequestError(
            f"'expires_after[seconds]' must be from {limits.MIN_EXPIRY} to {limits.MAX_EXPIRY}",
            "expires_after[seconds]",
        )
    return purpose, int(seconds)


def checked_purpose(purpose: str | None) -> str:
    """The purpose, if files may be sent for it.

    Raises:
        RequestError: they may not; says why.
    """
    if purpose in PURPOSES:
        return purpose
    why = _REFUSED.get(purpose or "")
    if why is not None:
        raise RequestError(f"'purpose' can't be {purpose}: {why}", "purpose")
    raise RequestError(f"'purpose' must be one of {', '.join(PURPOSES)}", "purpose")


def default_expiry(purpose: str) -> int | None:
    """After how many seconds a file goes of which nobody said when."""
    return BATCH_EXPIRY if purpose == "batch" else None


def check_fields(form: Form, known: tuple[str, ...]) -> None:
    """Raise RequestError for a field that means nothing, or stands there twice."""
    names = [name for name, _ in form.fields]
    for place, name in enumerate(names):
        if name not in known:
            raise RequestError(
                f"Unrecognized field of the form: {shown(name)}", name[:100], "unknown_parameter"
            )
        if name in names[:place]:
            raise RequestError(f"'{name}' stands in the form twice", name)


def only_file(form: Form, field: str, at_most: int) -> tuple[str, Path]:
    """The name and place of the one file of a form, in its part ``field``.

    Raises:
        RequestError: there is not exactly one.
        BodyTooLarge: it has more than ``at_most`` bytes.
    """
    if form.file_fields != [field]:
        raise RequestError(f"The form must have one file, '{field}'", field)
    name, path = form.files[0]
    if path.stat().st_size > at_most:
        raise BodyTooLarge(f"'{field}' has more than {at_most} bytes")
    return own_name(name), path


def own_name(name: str) -> str:
    """What a sender's name of a file is kept as: its last step, without what can't be printed."""
    match = _LAST_STEP.search(name)
    assert match is not None, "the pattern matches the end of any text"
    return "".join(c for c in match.group() if c.isprintable())[:255] or "file"
