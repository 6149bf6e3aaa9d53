"""A :class:`TrainConfig` from flags over one YAML file, and back to YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.knob import flag_of


def load_config(flags: Mapping[str, object], file: Path | None = None) -> TrainConfig:
    """Read the configuration of a run; a flag beats the file, which beats the default.

    Args:
        flags: the options given on the command line by field name, only those given. Paths in them start at
            the working directory.
        file: the YAML file. Paths in it start at the working directory too.

    Raises:
        TrainingConfigError: naming every unknown key and bad value, and where each came from.
    """
    keys = {} if file is None else read_yaml(file)
    unknown = [key for key in keys if key not in TrainConfig.model_fields]
    if unknown:
        raise TrainingConfigError(
            "\n".join(f"{file}: {key}: no such key{_nearest(str(key))}" for key in unknown)
        )
    source = {key: f"{file}: {key}" for key in keys} | {key: flag_of(key) for key in flags}
    try:
        return TrainConfig.model_validate({**keys, **flags})
    except ValidationError as error:
        lines = [line for fault in error.errors() for line in _describe(fault, source)]
        raise TrainingConfigError("\n".join(lines)) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in ``file``.

    Raises:
        TrainingConfigError: it can't be read, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingConfigError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, dict):
        raise TrainingConfigError(
            f"{file}: must be a mapping of options to values, not {type(content).__name__}"
        )
    return {str(key): value for key, value in (content or {}).items() if value is not None}


def to_yaml(config: TrainConfig) -> str:
    """``config`` as a file that :func:`load_config` reads back to the same."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _nearest(key: str) -> str:
    match = difflib.get_close_matches(key.replace("-", "_").lower(), TrainConfig.model_fields, n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def _describe(fault: Any, source: Mapping[str, str]) -> list[str]:
    """One validation fault as lines that begin with where the value came from."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # checks over several fields: one a line, each beginning with its field
        return [_sourced(line, source) for line in message.splitlines()]
    field, *inside = (str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return [f"{flag_of(field)} is required"]
    message = message.replace("Input should be", "must be", 1)
    message = message[:1].lower() + message[1:]
    at = "".join(f"[{part}]" for part in inside if part != "[key]")
    return [f"{source.get(field, field)}{at}: {message} (got {repr(fault['input'])[:80]})"]


def _sourced(line: str, source: Mapping[str, str]) -> str:
    field, _, rest = line.partition(": ")
    return f"{source.get(field, field)}: {rest}"
