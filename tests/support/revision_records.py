"""Records of revisions that exist nowhere, for tests of the registry."""

from __future__ import annotations

import hashlib

from manylora.adapters.registry.records import RevisionRecord


def digest(text: str) -> str:
    """The digest of a revision whose content is ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def revision(text: str = "one", **facts: object) -> RevisionRecord:
    """The facts of a revision whose content is ``text``."""
    known: dict[str, object] = {
        "digest": digest(text),
        "nbytes": 1234,
        "rank": 16,
        "modules": 7,
        "total_modules": 9,
        "kind": "LORA",
        "base_model_name": "org/base",
        "base_fingerprint": "f00d",
        "source": "file:///srv/one",
        "created": 1000.5,
    }
    return RevisionRecord(**{**known, **facts})  # type: ignore[arg-type]  # facts are what a test says
