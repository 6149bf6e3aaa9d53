"""Tags of adapters: how many a name may have, and what they may look like."""

from __future__ import annotations

import re
from collections.abc import Collection

from manylora.adapters.errors import AdapterNameError

MAX_TAGS = 32

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,63}")


def check_tags(tags: Collection[str]) -> None:
    """Raise :class:`AdapterNameError` unless these may be tags: at most 32, each of 1 to 64 characters."""
    if len(tags) > MAX_TAGS:
        raise AdapterNameError(f"an adapter has at most {MAX_TAGS} tags")
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise AdapterNameError(
                f"{tag[:80]!r} is not a tag: use 1 to 64 letters, digits, '.', '_', ':', '/', '=' or '-', "
                "starting with a letter or digit"
            )
