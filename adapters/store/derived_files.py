"""Files beside the artifact of a revision: what a server made of it, and can make again.

They lie in the revision's directory and go with it, and are no part of its digest. Nothing is synced: whoever
reads such a file finds out whether it is whole.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.store.store import RevisionStore

SPARE_BYTES = 1 << 30  # of the disk, that such files leave free


def keep_beside(
    store: RevisionStore, digest: str, name: str, parts: Sequence[bytes | memoryview], *, kind: str
) -> None:
    """Write ``parts`` as the file ``name`` of a revision: by one rename, so that nobody sees half of it.

    Of the files whose names begin with ``kind`` the latest other one stays beside it, and no more.

    Raises:
        AdapterNotFound: there is no such revision (any more).
        StoreError: the disk refused, or has less than 1 GiB to spare.
    """
    target = store.path(digest) / name
    with store.temporary() as temporary:
        try:
            if shutil.disk_usage(temporary).free < SPARE_BYTES + sum(map(len, parts)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with (temporary / name).open("wb") as file:
                file.writelines(parts)
            (temporary / name).replace(target)
            _prune(target, kind)
        except FileNotFoundError:
            raise AdapterNotFound(f"revision {digest} was deleted") from None
        except OSError as error:
            raise disk_fault(f"{target} can't be written", error) from None


def _prune(newest: Path, kind: str) -> None:
    others = [path for path in newest.parent.glob(f"{kind}*") if path != newest]
    for path in sorted(others, key=lambda path: path.stat().st_mtime_ns)[:-1]:
        path.unlink(missing_ok=True)
