"""Everything that can be wrong with an adapter, as one tree.

AdapterError
├── ArtifactError       the files are not an adapter this base can serve; carries every fault found
├── AdapterNameError    the name is malformed
├── MixError            the mix expression is malformed; names the entry
├── AdapterNotFound     no adapter or revision of that name
│   └── AdapterDeleted      it was deleted while a revision of it was on its way
├── AdapterExists       the name is taken and replacing was not asked for
├── AdapterInUse        requests, a pin or an alias need what was to be taken away
├── SourceForbidden     the source lies outside what this server may read
├── SourceMissing       nothing is at the source
│   └── SourceUnreachable   it can't be told, or read, for now
├── AdapterTooLarge     the mix can never fit the memory given to adapters
├── BaseModelError      the base model can't be found, fetched or converted
├── ChatTemplateError   a conversation can't be rendered
├── OverQuota           whose adapter it is has no room left for it
├── TenantNotFound      no tenant of that name, or no such key of it
├── TenantExists        a tenant can't be made: the name is taken, or there are as many as may be
├── MergeFailed         a merged model does not answer like the base with the adapters
└── StoreError          the revision store can't be used: in use by another process, or the disk refused
    ├── RegistryUnavailable     the database server of the registry does not answer, or refuses
    ├── StorageUnreachable      the storage that servers share for files does not answer, or refuses
    ├── DiskFull                there is no space for what was to be written
    └── OutputExists    there is something already where a result was to be written
"""

from __future__ import annotations

from collections.abc import Sequence


class AdapterError(Exception):
    """Base of every error about adapters. ``str()`` is a sentence for the caller.

    It may name files of this machine. Callers who must not read that are told ``public`` instead; None where
    the kind of error has a sentence for them, or needs none.
    """

    def __init__(self, *args: object, public: str | None = None) -> None:
        super().__init__(*args)
        self.public = public


class ArtifactError(AdapterError):
    """The files are not an adapter that can be served; ``faults`` lists every reason found."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


class AdapterNameError(AdapterError):
    """The name does not match the grammar of names."""


class MixError(AdapterError):
    """The mix is malformed; the message names the entry that is wrong."""


class AdapterNotFound(AdapterError):
    """No adapter (or revision) is registered under that name."""


class AdapterDeleted(AdapterNotFound):
    """The name was deleted after its publication had begun, so that nothing was published."""


class AdapterExists(AdapterError):
    """The name is in use and the caller did not ask to replace it."""


class AdapterInUse(AdapterError):
    """Requests that run, a pin or an alias need the adapter, so it can't be moved or deleted."""


class SourceForbidden(AdapterError):
    """The path lies outside the configured adapter roots."""


class SourceMissing(AdapterError):
    """There is no adapter at the path."""


class SourceUnreachable(SourceMissing):
    """The source does not answer, or its storage is not supported here."""


class AdapterTooLarge(AdapterError):
    """The mix needs more adapter memory than the server has in total."""


class BaseModelError(AdapterError):
    """There is no such base model, it can't be fetched, or its files can't be used."""


class ChatTemplateError(AdapterError):
    """The tokenizer has no chat template, or the template rejects the messages."""


class OverQuota(AdapterError):
    """The adapters of whose it is would take more bytes than they may."""


class TenantNotFound(AdapterError):
    """There is no tenant of that name, or it has no such key."""


class TenantExists(AdapterError):
    """A tenant or a key can't be made: the name is taken, or there are as many as there may be."""


class StoreError(AdapterError):
    """The revision store can't be opened or written; the message says what refused."""


class RegistryUnavailable(StoreError):
    """The adapter registry is on a database server, and that can't be used for now."""


class StorageUnreachable(StoreError):
    """The storage that servers share for clients' files can't be used for now."""


class DiskFull(StoreError):
    """There is no space on the disk, or no more of it for this user; nothing was kept of what was written."""


class MergeFailed(AdapterError):
    """The merged model differs from the base with the adapters by more than rounding."""


class OutputExists(StoreError):
    """A result is written to a new place only, and something is at that place."""
