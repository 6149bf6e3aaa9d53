"""Reads :class:`manylora.server.options.settings.Settings` once, from flags, environment and one YAML file.

A flag beats its environment variable, which beats the YAML file, which beats the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from manylora.adapters.options.loading import (
    OptionsRefused,
    build,
    file_places,
    flag_places,
    read_yaml,
    unknown_keys,
)
from manylora.server.errors import ConfigError
from manylora.server.options.settings import CONFIG_VARIABLE, SECRETS, URL_VARIABLE, Settings
from manylora.server.options.types import ENV_PREFIX

# What Kubernetes puts into every pod beside a Service that is called "manylora".
_SERVICE_LINK = re.compile(r"MANYLORA_(SERVICE_.*|PORT_\d+_.*)")


def load_settings(flags: Mapping[str, object], config: Path | None = None) -> Settings:
    """Read the configuration of a server.

    Args:
        flags: the options given on the command line, by field name; only those given.
        config: the YAML file; ``None`` takes the one named by ``MANYLORA_CONFIG``, if any.

    Raises:
        ConfigError: naming every unknown key and every bad value, and where each came from.
    """
    variables = _variables()
    named = os.environ.get(CONFIG_VARIABLE)
    file = config if config is not None else Path(named).expanduser() if named else None
    try:
        return _read(flags, variables, file)
    except OptionsRefused as refused:
        raise ConfigError(str(refused)) from None


def _read(flags: Mapping[str, object], variables: Mapping[str, str], file: Path | None) -> Settings:
    """The settings; ``Settings`` reads the values of ``variables`` from the environment by itself."""
    keys = {} if file is None else read_yaml(file)
    faults = unknown_keys(variables, Settings, _variable, _variable, "option")
    faults += unknown_keys(keys, Settings, lambda key: f"{file}: {key}")
    if faults:
        raise OptionsRefused("\n".join(faults))
    places = file_places(file, keys) | dict(variables) | flag_places(flags)
    below = {key: value for key, value in keys.items() if key not in variables and value is not None}
    return build(Settings, {**below, **flags}, places, SECRETS)


def _variable(key: object) -> str:
    return f"{ENV_PREFIX}{str(key).upper()}"


def _variables() -> dict[str, str]:
    """The ``MANYLORA_*`` variables that are set and not empty: field name -> variable."""
    found = {}
    for variable, value in os.environ.items():
        upper = variable.upper()
        if not upper.startswith(ENV_PREFIX) or upper in {CONFIG_VARIABLE, URL_VARIABLE} or not value:
            continue
        if _SERVICE_LINK.fullmatch(upper):
            continue
        found[upper.removeprefix(ENV_PREFIX).lower()] = variable
    return found
