"""The files of an artifact: safe opening, strict JSON, and the digest that names a revision."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from manylora.adapters.format.faults import shown

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20

# Kept beside the weights where they are there: how conversations are written, and how text is read.
TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
VOCABULARY_NAMES = ("added_tokens.json", "merges.txt", "tokenizer.model", "vocab.json", "vocab.txt")
TEXT_NAMES = (
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    SPECIAL_TOKENS_NAME,
    *VOCABULARY_NAMES,
)
MAX_TEXT_BYTES = 64 << 20  # of all of them together

CLASSES_NAME = "config.json"  # transformers': names the classes of an adapter that classifies

# sentence-transformers': how an adapter that embeds pools hidden states. The one lies in a folder.
MODULES_NAME, POOLING_NAME = "modules.json", "1_Pooling/config.json"
POOLING_NAMES = (MODULES_NAME, POOLING_NAME)

# All that a revision keeps, by the path in its directory.
KEPT_NAMES = (CONFIG_NAME, WEIGHTS_NAME, *TEXT_NAMES, CLASSES_NAME, *POOLING_NAMES)

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class FileFault(Exception):
    """A file of the artifact can't be used; ``str()`` is a sentence that names the file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered; never blocks on a FIFO, never reads a device.

    Raises:
        FileFault: missing, not readable, or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise FileFault(f"there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise FileFault(f"{path.name} can't be read: {_reason(error)}") from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise FileFault(f"{path.name} is not a regular file")


def read_into(file: BinaryIO, buffer: memoryview, name: str) -> None:
    """Fill ``buffer`` from ``file``.

    Raises:
        FileFault: the file ends early or the disk refuses.
    """
    done = 0
    try:
        while done < len(buffer):
            count = file.readinto(buffer[done:])  # type: ignore[attr-defined]  # unbuffered files have it
            if not count:
                raise FileFault(f"{name} is truncated: {len(buffer) - done} bytes are missing")
            done += count
    except OSError as error:
        raise FileFault(f"{name} can't be read: {_reason(error)}") from None


def read_config(path: Path) -> dict[str, Any]:
    """Parse ``adapter_config.json``: UTF-8, bounded, one object, no duplicate keys, no NaN or Infinity.

    Raises:
        FileFault: any of these is not so.
    """
    return parse_config_bytes(read_config_bytes(path))


def read_config_bytes(path: Path) -> bytes:
    """The bytes of ``adapter_config.json``.

    Raises:
        FileFault: it can't be read, or is too large to be a config.
    """
    return _read_bounded(path, MAX_CONFIG_BYTES)


def place_in(directory: Path, name: str) -> Path:
    """Where in ``directory`` the file ``name`` of :data:`KEPT_NAMES` is written; its folder is made.

    Raises:
        OSError: it can't be made.
    """
    place = directory / name
    place.parent.mkdir(exist_ok=True)
    return place


def folder_and_name(path: str) -> tuple[str, str]:
    """The folder of an adapter that holds the file ``path`` ("a/b"), and the file's path in that folder."""
    if path == POOLING_NAME or path.endswith(f"/{POOLING_NAME}"):
        return path[: -len(POOLING_NAME)].rstrip("/"), POOLING_NAME
    folder, _, name = path.rpartition("/")
    return folder, name


def kept_in(directory: Path) -> tuple[str, ...]:
    """Those of :data:`KEPT_NAMES` that ``directory`` holds."""
    return tuple(name for name in KEPT_NAMES if (directory / name).is_file())


def enum_name(value: object) -> object:
    """A ``peft_type`` or ``task_type`` as PEFT writes it: "lora" and "PeftType.LORA" are LORA."""
    return value.strip().rpartition(".")[2].upper() if isinstance(value, str) else value


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether ``adapter_config.json`` is that of an adapter which classifies instead of writing."""
    task, mapping = enum_name(config.get("task_type")) or None, config.get("auto_mapping")
    if task is not None or not isinstance(mapping, dict):
        return bool(task == "SEQ_CLS")
    return str(mapping.get("base_model_class")).endswith("ForSequenceClassification")


def embeds(config: Mapping[str, Any]) -> bool:
    """Whether ``adapter_config.json`` is that of an adapter which embeds texts instead of writing them."""
    return enum_name(config.get("task_type")) == "FEATURE_EXTRACTION"


def read_text_files(directory: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Those of :data:`TEXT_NAMES` that ``directory`` holds, and what says how the task is done.

    That is the labels where ``config`` classifies, and how hidden states are pooled where it embeds.

    Raises:
        FileFault: one can't be read, or they are too large.
    """
    files: dict[str, bytes] = {}
    left = MAX_TEXT_BYTES
    of_task = (CLASSES_NAME,) if classifies(config) else POOLING_NAMES if embeds(config) else ()
    for name in (*TEXT_NAMES, *of_task):
        if os.path.lexists(directory / name):
            files[name] = _read_bounded(directory / name, left)
            left -= len(files[name])
    return files


def _read_bounded(path: Path, limit: int) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileFault(f"{path.name} has {size:,} bytes; the limit is {limit:,}")
        content = bytearray(size)
        read_into(file, memoryview(content), path.name)
    return bytes(content)


def parse_config_bytes(content: bytes) -> dict[str, Any]:
    """Parse the bytes of ``adapter_config.json``.

    Raises:
        FileFault: it is not JSON that can be written back (1e999 is infinite, lone surrogates no text).
    """
    config = parse_json_object(content, CONFIG_NAME)
    try:
        json.dumps(config, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeError:
        raise FileFault(f"{CONFIG_NAME} holds text that is not valid Unicode") from None
    except ValueError:
        raise FileFault(f"{CONFIG_NAME} holds a number that is not finite") from None
    return config


def parse_json_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse one JSON object strictly.

    Raises:
        FileFault: not UTF-8, not JSON, not an object, a duplicate key, NaN or Infinity.
    """
    try:
        value = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant
        )
    except UnicodeError:
        raise FileFault(f"{name} is not valid UTF-8") from None
    except RecursionError:
        raise FileFault(f"{name} is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, the hooks below, integers beyond Python's digit limit
        raise FileFault(f"{name} is not valid JSON: {_reason(error)}") from None
    if not isinstance(value, dict):
        raise FileFault(f"{name} must hold a JSON object, not a {type(value).__name__}")
    return value


def artifact_digest(config: Mapping[str, Any]) -> hashlib._Hash:
    """Start the digest of an artifact: its caller feeds it the weights file, then :func:`add_text_files`.

    SHA-256 over the config as canonical JSON (sorted keys, no spaces), the weights file as it is, and the
    files of text, if there are any, each with its name and length before it.
    """
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii"))


def add_text_files(digest: hashlib._Hash, files: Mapping[str, bytes]) -> None:
    """Feed the digest of an artifact its text files, as :func:`read_text_files` returned them."""
    for name in sorted(files):
        digest.update(f"\n{name} {len(files[name])}\n".encode("ascii"))
        digest.update(files[name])


def pickle_fault(name: str) -> str:
    """The message that refuses the file ``name``, which may hold weights as a pickle."""
    return (
        f"{shown(name)} is a pickle, which can run code when it is read: only safetensors are served (where "
        f"you trust it, load it with PEFT and save_pretrained it again, which writes {WEIGHTS_NAME})"
    )


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} appears twice")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return shown(str(error))[1:-1]
