"""Reads :class:`manylora.server.options.settings.Settings` once, from flags, environment and one YAML file.

A flag beats its environment variable, which beats the YAML file, which beats the default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from manylora.server.errors import ConfigError
from manylora.server.options.settings import CONFIG_VARIABLE, ENV_PREFIX, SECRETS, URL_VARIABLE, Settings

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
    keys = _read_yaml(file) if file is not None else {}
    faults = [
        f"{ENV_PREFIX}{key.upper()}: no such option{_nearest(key, str.upper, ENV_PREFIX)}"
        for key in variables
        if key not in Settings.model_fields
    ]
    faults += [
        f"{file}: {key}: no such key{_nearest(str(key))}" for key in keys if key not in Settings.model_fields
    ]
    if faults:
        raise ConfigError("\n".join(faults))

    source = {key: f"{file}: {key}" for key in keys}
    source |= {key: variables[key] for key in variables}
    source |= {key: "--" + key.replace("_", "-") for key in flags}
    below = {key: value for key, value in keys.items() if key not in variables and value is not None}
    try:
        return Settings(**{**below, **flags})
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(fault, source) for fault in error.errors())) from None


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


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must be a mapping of options to values, not {type(content).__name__}")
    return content


def _nearest(key: str, spell: Any = str, prefix: str = "") -> str:
    """`` (did you mean port?)``, or nothing when no option resembles ``key``."""
    match = difflib.get_close_matches(key.replace("-", "_").lower(), Settings.model_fields, n=1)
    return f" (did you mean {prefix}{spell(match[0])}?)" if match else ""


def _describe(fault: Any, source: Mapping[str, str]) -> str:
    """One validation fault as a sentence that begins with where the value came from."""
    message = fault["msg"].removeprefix("Value error, ")
    if fault["loc"]:
        field = str(fault["loc"][0])
    else:  # a check over several fields; its message starts with the field's name
        field, _, message = message.partition(": ")
    message = message.replace("Input should be", "must be", 1)
    message = message[:1].lower() + message[1:]
    shown = "" if field in SECRETS or not fault["loc"] else _shown(fault["input"])
    return f"{source.get(field, field)}: {message}{shown}"


def _shown(value: object) -> str:
    text = repr(value)
    return f" (got {text[:80]}{'…' if len(text) > 80 else ''})"
