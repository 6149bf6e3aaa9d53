"""Revisions that no name has and that are kept all the same, as a registry that knew their names was lost.

They are listed in the store, so that they outlive further starts with the new registry.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from manylora.adapters.disk import disk_fault, sync_path
from manylora.adapters.store.store import RevisionStore

_LIST = ".nameless"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def kept_nameless(store: RevisionStore) -> frozenset[str]:
    """The digests of the revisions that are kept.

    Raises:
        StoreError: the disk refused.
    """
    path = store.root / _LIST
    try:
        return frozenset(_DIGEST.findall(path.read_text("ascii", "replace")))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise disk_fault(f"{path} can't be read", error) from None


def keep_nameless(store: RevisionStore, digests: Collection[str]) -> None:
    """Keep exactly these from now on.

    Raises:
        StoreError: the disk refused.
    """
    path = store.root / _LIST
    try:
        if not digests:
            path.unlink(missing_ok=True)
            return
        with store.temporary() as temporary:
            draft = temporary / _LIST
            draft.write_text("".join(f"{digest}\n" for digest in sorted(digests)))
            sync_path(draft)
            draft.replace(path)
            sync_path(store.root)
    except OSError as error:
        raise disk_fault(f"{path} can't be written", error) from None
