"""Reads the adapters that are to be composed or merged, from directories of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Limits
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.reader import MAX_RANK
from manylora.adapters.format.foreign.reading import read_any
from manylora.adapters.merge.recipe import Member

_MAX_BYTES = 1 << 40  # of an adapter that the user names on their own machine


def read_members(weighted: Iterable[tuple[Path, float]], base: BaseModel) -> list[Member]:
    """The adapters in directories, with weights, checked against ``base``.

    Raises:
        SourceMissing: there is no adapter at a path.
        ArtifactError: an adapter is not for this base, or not sound; with every fault of all of them.
    """
    members, faults = [], []
    for path, weight in weighted:
        try:
            artifact = read_any(path, base, Limits(MAX_RANK, _MAX_BYTES))
        except ArtifactError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
        else:
            members.append(Member(path.resolve().name, artifact, weight))
    if faults:
        raise ArtifactError(faults)
    return members
