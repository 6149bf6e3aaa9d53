"""Giving the revisions in a store their names back, when the registry that knew them was lost.

What is recorded beside a revision says under which names it was published, from where and when. A name that
is free gets the revisions that were published under it, in that order. A revision without such a record, or
whose names mean something else by now, gets a name made of its digest. Names that are registered stay as they
are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.adapters.errors import AdapterNotFound, StoreError
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME, FileFault, read_config
from manylora.adapters.registry.cleanup import nameless
from manylora.adapters.registry.publication_record import RecordedName, read_record
from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.registry.recovery import RestoredRevision
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.kept_nameless import keep_nameless
from manylora.adapters.store.store import RevisionStore

MADE_UP = "recovered"  # begins the name of a revision whose own is not known
_SHOWN_DIGITS = 8
_MAX_NAME = 128
_MAX_HEADER = 100 << 20  # bytes of a weights file that describe its tensors


@dataclass(frozen=True)
class Found:
    """A revision without a name, and the name that it is to have."""

    restored: RestoredRevision
    recorded: bool  # the name is recorded beside it, and not made up


def find_names(registry: Registry, store: RevisionStore) -> list[Found]:
    """The revisions in the store that no name has, with the names they are to have; oldest first.

    Nothing is changed.

    Raises:
        StoreError: the disk or the database refused, or the two do not belong together.
    """
    registry.check_store(store.identity)
    found: list[Found] = []
    for digest in nameless(registry, store):
        found += _names_of(registry, store.root / digest, digest)
    return sorted(found, key=lambda each: (each.restored.since, each.restored.facts.digest))


def recover_names(registry: Registry, store: RevisionStore) -> list[Found]:
    """Register what :func:`find_names` finds, all of it or nothing; returns that.

    Raises:
        StoreError: the disk or the database refused, the two do not belong together, or a server uses them.
    """
    refuse_while_used(store)
    found = find_names(registry, store)
    registry.set_store(store.identity)
    if found:
        registry.recovery.restore([each.restored for each in found])
    keep_nameless(store, ())
    return found


def refuse_while_used(store: RevisionStore) -> None:
    """Raise StoreError if another process has the store open."""
    if store.num_others:
        raise StoreError(f"a server uses the revision store {store.root}: stop it first")


def _names_of(registry: Registry, directory: Path, digest: str) -> list[Found]:
    record = read_record(directory, digest)
    facts = _facts_of_files(directory, digest) if record is None else record.facts
    recorded = () if record is None else record.names
    free = [each for each in recorded if not _is_taken(registry, each.name)]
    if free:
        return [
            Found(RestoredRevision(each.name, facts, each.source, each.tags, each.since), recorded=True)
            for each in free
        ]
    last = max(recorded, key=lambda each: each.since, default=None)
    name = _made_up(registry, MADE_UP if last is None else last.name, digest)
    made = RecordedName(name, facts.source, (), facts.created) if last is None else last
    return [
        Found(RestoredRevision(name, facts, made.source, made.tags, made.since), recorded=False),
    ]


def _made_up(registry: Registry, beginning: str, digest: str) -> str:
    for digits in (_SHOWN_DIGITS, 2 * _SHOWN_DIGITS, len(digest)):
        name = f"{beginning[: _MAX_NAME - 1 - digits]}-{digest[:digits]}"
        if not _is_taken(registry, name):
            return name
    raise StoreError(f"the registry has other revisions under every name that fits revision {digest}")


def _is_taken(registry: Registry, name: str) -> bool:
    for get in (registry.names.get, registry.aliases.get):
        try:
            get(name)
        except AdapterNotFound:
            continue
        return True
    return False


def _facts_of_files(directory: Path, digest: str) -> RevisionRecord:
    """What the files of an artifact say of themselves; whether they fit a base is seen when they load."""
    config = _config(directory)
    rank, base = config.get("r"), config.get("base_model_name_or_path")
    weights = (directory / WEIGHTS_NAME).stat()
    return RevisionRecord(
        digest=digest,
        nbytes=weights.st_size,
        rank=rank if isinstance(rank, int) and 0 <= rank < 1 << 31 else 0,
        modules=_num_modules(directory / WEIGHTS_NAME),
        total_modules=0,
        kind=str(config.get("peft_type", ""))[:64],
        base_model_name=base if isinstance(base, str) else None,
        base_fingerprint=None,
        source="",
        created=weights.st_mtime,
    )


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        config = read_config(directory / CONFIG_NAME)
    except FileFault:
        return {}
    return config


def _num_modules(weights: Path) -> int:
    """How many modules the tensors of a weights file are of; 0 if its header can't be read."""
    try:
        with weights.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(size)) if size <= _MAX_HEADER else {}
    except (OSError, ValueError, RecursionError):
        return 0
    if not isinstance(names, dict):
        return 0
    return len({name.rsplit(".lora_", 1)[0] for name in names if ".lora_" in name})
