"""What is recorded of a revision beside its files: its facts, and under which names it was published.

What names mean is in the registry and nowhere else. This is read where a registry was lost, and its revisions
are to get their names back. It goes with the revision's directory, and is no part of its digest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from manylora.adapters.disk import disk_fault, sync_path
from manylora.adapters.errors import AdapterNameError, AdapterNotFound
from manylora.adapters.file_locks import locked_directory
from manylora.adapters.mix import is_name
from manylora.adapters.registry.records import NameRecord, RevisionRecord
from manylora.adapters.registry.tags import check_tags
from manylora.adapters.store.store import RevisionStore

RECORD_NAME = "published.json"
_MAX_BYTES = 1 << 20  # of a record that is read
_VERSION = 1
_MAYBE_TEXT = (str, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "nbytes": (int,),
    "rank": (int,),
    "modules": (int,),
    "total_modules": (int,),
    "kind": (str,),
    "base_model_name": _MAYBE_TEXT,
    "base_fingerprint": _MAYBE_TEXT,
    "source": (str,),
    "created": (int, float),
    "lineage": (dict, type(None)),
    "details": (dict,),
}


@dataclass(frozen=True)
class RecordedName:
    """A name that a revision was published under."""

    name: str
    source: str
    tags: tuple[str, ...]
    since: float  # unix seconds, when the name last came to mean this revision


@dataclass(frozen=True)
class PublicationRecord:
    """What lies beside a revision."""

    generation: int  # of the registry, when this was written
    facts: RevisionRecord
    names: tuple[RecordedName, ...]


def record_publication(
    store: RevisionStore, facts: RevisionRecord, name: NameRecord, generation: int
) -> None:
    """Record beside a revision that ``name`` means it now, in the registry's ``generation``.

    Raises:
        AdapterNotFound: the revision is not there (any more).
        StoreError: the disk refused.
    """
    now = RecordedName(name.name, name.source, name.tags, time.time())

    def change(before: PublicationRecord | None) -> PublicationRecord:
        kept = () if before is None else before.names
        return PublicationRecord(generation, facts, (*(each for each in kept if each.name != name.name), now))

    _change(store, facts.digest, change)


def forget_name(store: RevisionStore, digest: str, name: str) -> None:
    """Record beside a revision that ``name`` means it no more, as it was deleted.

    Raises:
        As :func:`record_publication`.
    """

    def change(before: PublicationRecord | None) -> PublicationRecord | None:
        if before is None:
            return None
        return replace(before, names=tuple(each for each in before.names if each.name != name))

    _change(store, digest, change)


def _change(
    store: RevisionStore, digest: str, change: Callable[[PublicationRecord | None], PublicationRecord | None]
) -> None:
    """Replace what is recorded beside a revision, by one rename; nobody else does at the same time."""
    directory = store.path(digest)
    target = directory / RECORD_NAME
    try:
        with locked_directory(directory), store.temporary() as temporary:
            record = change(read_record(directory, digest))
            if record is None:
                return
            draft = temporary / RECORD_NAME
            draft.write_text(_text(record))
            sync_path(draft)
            draft.replace(target)
    except FileNotFoundError:
        raise AdapterNotFound(f"revision {digest} was deleted") from None
    except OSError as error:
        raise disk_fault(f"{target} can't be written", error) from None


def read_record(directory: Path, digest: str) -> PublicationRecord | None:
    """What is recorded beside the revision ``digest``; None where nothing is, or nothing that makes sense."""
    try:
        with (directory / RECORD_NAME).open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        return _record(content, digest)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, AdapterNameError):
        return None


def _text(record: PublicationRecord) -> str:
    facts = {**vars(record.facts), "details": dict(record.facts.details)}
    facts["lineage"] = None if record.facts.lineage is None else dict(record.facts.lineage)
    names = [asdict(each) for each in record.names]
    content = {"version": _VERSION, "generation": record.generation, "facts": facts, "names": names}
    return json.dumps(content, indent=1)


def _record(content: Mapping[str, Any], digest: str) -> PublicationRecord:
    """The record that was written as ``content``; any of the usual exceptions if it can't be one."""
    if content["version"] != _VERSION or content["facts"]["digest"] != digest:
        raise ValueError("of another version, or another revision")
    known = {field.name for field in fields(RevisionRecord)} - {"digest"}
    facts = {name: _checked(content["facts"][name], _TYPES[name]) for name in known}
    names = tuple(_recorded_name(each) for each in content["names"])
    return PublicationRecord(_checked(content["generation"], (int,)), RevisionRecord(digest, **facts), names)


def _recorded_name(content: Mapping[str, Any]) -> RecordedName:
    tags = tuple(_checked(tag, (str,)) for tag in content["tags"])
    check_tags(tags)
    name = _checked(content["name"], (str,))
    if not is_name(name):
        raise ValueError("not a name")
    since = float(_checked(content["since"], (int, float)))
    return RecordedName(name, _checked(content["source"], (str,)), tags, since)


def _checked(value: Any, types: tuple[type, ...]) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        raise TypeError(f"of an unexpected type: {type(value).__name__}")
    return value
