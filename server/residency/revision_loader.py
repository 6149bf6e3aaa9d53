"""Revisions on disk as this server reads them: checked when they come in, and kept packed from then on.

A cold load reads the packed form, which lies beside the revision. Where there is none yet, or it is
damaged, the revision is read, compared with its digest, checked and packed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from manylora.adapters.errors import (
    AdapterNotFound,
    ArtifactError,
    SourceMissing,
    StoreError,
)
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.foreign.change import Conversion
from manylora.adapters.format.foreign.convert import convert
from manylora.adapters.format.provenance import Provenance, read_provenance
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.registry.cleanup import delete_unreferenced
from manylora.adapters.registry.publication_record import forget_name
from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.copying import copy_texts
from manylora.adapters.store.derived_files import keep_beside
from manylora.adapters.store.store import RevisionStore
from manylora.server.kernels.buffers import ReusedMemory
from manylora.server.model.pages.packed_file import PREFIX, Packing, read_packed, serialize
from manylora.server.model.pages.pool import PackedAdapter, PagePool

logger = logging.getLogger(__name__)

# Fills the empty directory it is given with an artifact; returns the exact source where it knows that better.
Fetch = Callable[[Path], str | None]

SHOWN_DIGITS = 8  # of a digest, in model strings and messages
SMALL_BYTES = 1 << 20  # bytes that a packed form may take, however little is stored
_SPARE = 4  # revisions' worth of memory to read further ones into: as many as may be on their way


class RevisionLoader:
    """Reads, checks and keeps revisions. Every method blocks: worker threads call them."""

    def __init__(
        self, base: BaseModel, registry: Registry, store: RevisionStore, pool: PagePool, limits: Limits
    ) -> None:
        self._base = base
        self._registry = registry
        self._store = store
        self._pool = pool
        self._limits = limits
        self._memory = ReusedMemory(_SPARE)
        self._packing = Packing.of(pool.modules, base.weights_key, pool.data.dtype, pool.num_ranks)

    def check(
        self, directory: Path, source: str, *, in_place: bool = False
    ) -> tuple[RevisionRecord, PackedAdapter]:
        """Read the artifact in ``directory`` and find out whether, and as what, it can be served.

        What another tool than PEFT wrote is converted first: in the directory itself, with ``in_place``.
        Returns the facts, and the adapter as it will lie on the device.

        Raises:
            SourceMissing, ArtifactError: it can't be.
            AdapterTooLarge: it alone exceeds the memory given to adapters.
            StoreError: the disk refused.
        """
        converted = convert(directory, self._base, self._limits)
        if converted is None:
            return self._check(directory, source)
        if in_place:
            converted.write(directory)
            return self._check(directory, source, converted.conversion)
        with self._store.temporary() as temporary:
            converted.write(temporary)
            copy_texts(directory, temporary)
            return self._check(temporary, source, converted.conversion)

    def _check(
        self, directory: Path, source: str, conversion: Conversion | None = None
    ) -> tuple[RevisionRecord, PackedAdapter]:
        """What :meth:`check` says of an artifact in PEFT's form."""
        artifact = read_artifact(directory, self._base, self._limits)
        packed = self._pack(artifact)
        self._pool.check_size(packed.data.nbytes)
        provenance = read_provenance(directory)
        warning = provenance.warning(self._base.quantization)
        if warning is not None:
            logger.warning("the adapter from %s: %s", source, warning)
        details = _details(artifact) | ({} if warning is None else {"warnings": [warning]})
        if conversion is not None:
            details["converted_from"] = conversion.details()
        return self._facts(artifact, source, provenance, details), packed

    def put_back(self, digest: str, source: str, fetch: Fetch) -> None:
        """Fetch a revision that is missing from the store, and put it there if it is what it was.

        Raises:
            SourceMissing: ``source`` has it no more.
            StoreError: the disk refused.
        """
        with self._store.temporary() as directory:
            fetch(directory)
            facts, _ = self.check(directory, source, in_place=True)
            if facts.digest != digest:
                shown = digest[:SHOWN_DIGITS]
                raise SourceMissing(f"the files of revision {shown} are gone, and {source} has others now")
            self._store.prepare(directory)
            self._store.move_in(directory, digest)

    def read(self, digest: str) -> PackedAdapter:
        """Bring a revision in from disk, as it was packed before if that was kept.

        Raises:
            SourceMissing: its directory is not there.
            ArtifactError: it is not what it was.
        """
        directory, most = self._directory(digest), self._pool.capacity_bytes
        packed = read_packed(directory, digest, self._packing, most, self._memory)
        if packed is not None and packed.stated_rank <= self._limits.max_rank:
            self._pool.check_taken(packed)
            return packed
        artifact = self.artifact(digest)
        packed = self._pack(artifact)
        self.keep_packed(packed, artifact.nbytes)
        return packed

    def _pack(self, artifact: Artifact) -> PackedAdapter:
        return self._pool.pack(
            artifact.digest,
            artifact.delta,
            artifact.activation,
            vocabulary=artifact.vocabulary,
            prompt=artifact.prompt,
        )

    def keep_packed(self, packed: PackedAdapter, stored: int) -> None:
        """Keep a revision's packed form on disk, unless it is far larger than its ``stored`` bytes are.

        VeRA's is: its modules share what is packed for each of them. A disk that refuses is no fault.
        """
        if packed.data.nbytes > 2 * stored + SMALL_BYTES:
            return
        parts = serialize(packed, self._packing)
        try:
            keep_beside(self._store, packed.digest, self._packing.file_name, parts, kind=PREFIX)
        except AdapterNotFound:  # deleted meanwhile
            return
        except StoreError as error:
            logger.warning("revision %s is not kept packed: %s", packed.digest[:SHOWN_DIGITS], error)

    def deltas(self, digest: str) -> Mapping[str, ModuleDelta]:
        """What a revision does to each target module.

        Raises:
            SourceMissing: its directory is not there.
            ArtifactError: it is not what it was, or has parts that are not weights of target modules.
        """
        artifact = self.artifact(digest)
        if artifact.activation is not None:
            raise ArtifactError(["an aLoRA can't be merged: it does not run from the first token on"])
        if artifact.prompt is not None:
            raise ArtifactError(["virtual tokens can't be merged: no weight says what stands before a text"])
        if artifact.classes is not None:
            raise ArtifactError(["an adapter that classifies can't be merged: the copy would have no head"])
        if artifact.vocabulary is not None:
            raise ArtifactError(
                ["an adapter with embeddings or a head of its own can't be merged; it can be served"]
            )
        return artifact.delta

    def reclaim(self, digest: str) -> None:
        """Delete a revision's files, unless some name has it again; StoreError if the disk refused."""
        delete_unreferenced(self._registry, self._store, [digest])

    def forget_name(self, digest: str, name: str) -> None:
        """Record that ``name``, which was deleted, is no name of the revision; a fault is only logged."""
        try:
            forget_name(self._store, digest, name)
        except AdapterNotFound:  # deleted meanwhile
            return
        except StoreError as error:
            logger.warning("revision %s is still recorded as %r: %s", digest[:SHOWN_DIGITS], name, error)

    def has(self, digest: str) -> bool:
        """Whether the revision's directory is there."""
        return self._store.has(digest)

    def artifact(self, digest: str) -> Artifact:
        """A revision as it was published.

        Raises:
            SourceMissing: its directory is not there.
            ArtifactError: it is not what it was, or it was published for another base and doesn't fit this.
        """
        try:
            artifact = read_artifact(self._directory(digest), self._base, self._limits)
        except ArtifactError as error:
            if self._is_of_other_base(digest):
                faults = ["it was published for another base model and does not fit this one", *error.faults]
                raise ArtifactError(faults) from None
            raise
        if artifact.digest != digest:
            raise ArtifactError([f"the stored copy of revision {digest[:SHOWN_DIGITS]} has changed"])
        return artifact

    def _is_of_other_base(self, digest: str) -> bool:
        facts = self._registry.revisions.find([digest]).get(digest)
        return facts is not None and facts.base_fingerprint not in {None, self._base.fingerprint}

    def _directory(self, digest: str) -> Path:
        try:
            return self._store.path(digest)
        except AdapterNotFound:
            shown = digest[:SHOWN_DIGITS]
            raise SourceMissing(
                f"the files of revision {shown} are missing from the server's store"
            ) from None

    def _facts(
        self, artifact: Artifact, source: str, provenance: Provenance, details: Mapping[str, object]
    ) -> RevisionRecord:
        return RevisionRecord(
            digest=artifact.digest,
            nbytes=artifact.nbytes,
            rank=artifact.rank,
            modules=self._base.count_changed(artifact.delta),
            total_modules=len(self._base.modules) + len(self._base.experts),
            kind=artifact.kind,
            base_model_name=artifact.base_model_name,
            base_fingerprint=self._base.fingerprint,
            source=source,
            created=time.time(),
            lineage=provenance.lineage or None,
            details=details,
        )


def _details(artifact: Artifact) -> dict[str, object]:
    """Facts for people: which chat template and tokenizer answer, and how many tokens it knows."""
    details: dict[str, object] = dict(artifact.text.details())
    if artifact.prompt is not None:
        details["virtual_tokens"] = artifact.prompt.tokens
    if artifact.notes:
        details["notes"] = list(artifact.notes)
    if artifact.pooling is not None:
        details["pooling"] = artifact.pooling.pooling.lower()
        details["normalize"] = artifact.pooling.normalize
    if artifact.classes is not None:
        details["labels"] = list(artifact.classes.labels or ())
        details["problem_type"] = artifact.classes.problem
    elif artifact.vocabulary is not None:
        details["vocabulary"] = artifact.vocabulary.size
    return details
