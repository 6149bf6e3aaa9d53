"""A :class:`TrainConfig` from flags over one YAML file, and back to YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from manylora.adapters.options.loading import (
    OptionsRefused,
    build,
    file_places,
    flag_places,
    read_yaml,
    unknown_keys,
)
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError


def load_config(flags: Mapping[str, object], file: Path | None = None) -> TrainConfig:
    """Read the configuration of a run; a flag beats the file, which beats the default.

    Args:
        flags: the options given on the command line by field name, only those given. Paths in them start at
            the working directory.
        file: the YAML file. Paths in it start at the working directory too.

    Raises:
        TrainingConfigError: naming every unknown key and bad value, and where each came from.
    """
    try:
        keys = {} if file is None else read_yaml(file)
        unknown = unknown_keys(keys, TrainConfig, lambda key: f"{file}: {key}")
        if unknown:
            raise OptionsRefused("\n".join(unknown))
        values = {key: value for key, value in keys.items() if value is not None}
        return build(TrainConfig, {**values, **flags}, file_places(file, values) | flag_places(flags))
    except OptionsRefused as refused:
        raise TrainingConfigError(str(refused)) from None


def to_yaml(config: TrainConfig) -> str:
    """``config`` as a file that :func:`load_config` reads back to the same."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
