"""Adapters from the Hugging Face Hub: listed repositories, one commit, known files, counted bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote, unquote

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from manylora.adapters.disk import is_full
from manylora.adapters.errors import AdapterError, SourceForbidden, SourceMissing, SourceUnreachable
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import CONFIG_NAME, KEPT_NAMES
from manylora.adapters.format.foreign.file_names import (
    files_of_adapter,
    foreign_weights,
    names_a_file,
    only,
)
from manylora.adapters.sources.policy import (
    CHUNK,
    Meter,
    Progress,
    SourcePolicy,
    check_found,
    write_new,
)

TIMEOUT = 30.0  # seconds without a byte
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URL = re.compile(rf"hf://({_PART}/{_PART})(?:@([^/@]+))?((?:/[^/]+)*)/?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


@dataclass(frozen=True)
class HubSource:
    """A parsed hf://org/repo[@revision][/subfolder]."""

    repository: str
    revision: str | None  # branch, tag or commit; None for the default branch
    subfolder: str  # "" for the top; may name one file

    @property
    def file(self) -> str | None:
        """The file that is named; None where it is a folder."""
        return self.subfolder.rpartition("/")[2] if names_a_file(self.subfolder) else None

    @property
    def folder(self) -> str:
        """The folder that is named, or that the file is in."""
        return self.subfolder if self.file is None else self.subfolder.rpartition("/")[0]

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repository}{at}" + (f"/{self.subfolder}" if self.subfolder else "")


def parse_hub(source: str) -> HubSource:
    """Parse a URL of the Hub; a slash in a revision is written %2F.

    Raises:
        SourceMissing: it is malformed.
    """
    found = _URL.fullmatch(source)
    parts = found.group(3).strip("/").split("/") if found is not None else []
    revision = unquote(found.group(2)) if found is not None and found.group(2) is not None else None
    unsafe = any(part in {".", ".."} or not part.isprintable() or "\\" in part for part in parts)
    if (
        found is None
        or unsafe
        or (revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision))
    ):
        raise SourceMissing(f"{shown(source)} is not of the form hf://org/repository[@revision][/subfolder]")
    return HubSource(found.group(1), revision, "/".join(parts))


class Hub:
    """The Hugging Face Hub, as far as a policy allows it."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._policy = policy
        self._api = HfApi(endpoint=policy.hub_endpoint)

    def fetch(self, source: str, into: Path, progress: Progress | None) -> str:
        """Download an adapter's files, or the one that ``source`` names; returns it with their commit.

        Raises:
            SourceForbidden, SourceMissing, SourceUnreachable, ArtifactError: see :func:`fetch`.
        """
        wanted = self._allowed(source)
        with _explained(wanted):
            commit, sizes, elsewhere = self._look_up(wanted)
            check_found(sizes, source, elsewhere)
            kept = {name: sizes[name] for name in files_of_adapter(sizes)}
            meter = Meter(self._policy, progress, total=sum(kept.values()))
            meter.check_size(sum(kept.values()))
            for name in sorted(kept):
                meter.file()
                url = hf_hub_url(
                    wanted.repository,
                    name,
                    subfolder=wanted.folder or None,
                    revision=commit,
                    endpoint=self._policy.hub_endpoint,
                )
                write_new(into / name, meter.counted(_download(url)))
        return str(HubSource(wanted.repository, commit, wanted.subfolder))

    def check(self, source: str) -> None:
        """Raise SourceForbidden or SourceMissing if ``source`` can't be fetched, whatever lies there."""
        self._allowed(source)

    def exists(self, source: str) -> bool:
        """Whether there is an adapter at ``source``.

        Raises:
            SourceForbidden, SourceUnreachable: it can't be told.
        """
        wanted = self._allowed(source)
        try:
            with _explained(wanted):
                sizes = self._look_up(wanted)[1]
                return CONFIG_NAME in sizes or bool(foreign_weights(sizes))
        except SourceUnreachable:
            raise
        except SourceMissing:
            return False

    def _allowed(self, source: str) -> HubSource:
        wanted = parse_hub(source)
        if not any(fnmatchcase(wanted.repository, glob) for glob in self._policy.repositories):
            raise SourceForbidden(f"the repository {wanted.repository} is not among those allowed")
        return wanted

    def _look_up(self, wanted: HubSource) -> tuple[str, dict[str, int], list[str]]:
        """The commit, the sizes of the files in the subfolder itself, and the folders below with adapters."""
        info = self._api.model_info(
            wanted.repository, revision=wanted.revision, files_metadata=True, timeout=TIMEOUT
        )
        if info.sha is None:
            raise SourceUnreachable(f"the Hub does not say which commit of {wanted.repository} it has")
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        start = f"{wanted.folder}/" if wanted.folder else ""
        below = {name.removeprefix(start): size for name, size in files.items() if name.startswith(start)}
        sizes = {name: size for name, size in below.items() if "/" not in name or name in KEPT_NAMES}
        if wanted.file is not None:
            return info.sha, only(wanted.file, sizes), []
        elsewhere = [name.rpartition("/")[0] for name in below if name.endswith(f"/{CONFIG_NAME}")]
        return info.sha, sizes, elsewhere


def _download(url: str) -> Iterator[bytes]:
    with get_session().stream(
        "GET", url, headers=build_hf_headers(), follow_redirects=True, timeout=TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        yield from response.iter_bytes(CHUNK)


@contextmanager
def _explained(wanted: HubSource) -> Iterator[None]:
    """Say in the words of the adapters' errors what the Hub's client raises."""
    repository = wanted.repository
    try:
        yield
    except AdapterError:
        raise
    except GatedRepoError:
        raise SourceForbidden(
            f"{repository} is gated: accept its conditions on the Hub and set HF_TOKEN for this server"
        ) from None
    except RepositoryNotFoundError:
        raise SourceMissing(
            f"there is no repository {repository} on the Hub (or it is private, and needs HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise SourceMissing(f"{repository} has no revision {shown(wanted.revision)}") from None
    except (EntryNotFoundError, HFValidationError):
        raise SourceMissing(f"there is no adapter at {wanted}") from None
    except OfflineModeIsEnabled:
        raise SourceUnreachable(f"{wanted} can't be fetched: HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise SourceForbidden(f"the Hub refuses access to {repository}: HTTP {status}") from None
        raise SourceUnreachable(f"the Hub answered for {repository}: HTTP {status}") from None
    except Exception as error:  # of whichever HTTP library the client is built on
        if is_full(error):
            raise
        raise SourceUnreachable(f"the Hub can't be reached: {type(error).__name__}") from error
