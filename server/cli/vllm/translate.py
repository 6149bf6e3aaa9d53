"""From vLLM's options to our settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from manylora.server.cli.vllm.arguments import IGNORED, LISTS, ONLY, SERVED, SHORT, SWITCHES
from manylora.server.errors import ConfigError

_BY_ITSELF: Final = {"host": "0.0.0.0", "registry_scope": "pod", "unknown_fields": "ignore"}
_LEVELS: Final = {"critical": "error", "trace": "debug"}
_DTYPES: Final = {
    "auto": "auto",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float": "fp32",
    "float32": "fp32",
}
_FOUND_BY_ITSELF: Final = frozenset(
    {"none", "auto", "awq", "awq_marlin", "gptq", "gptq_marlin", "gguf", "auto_awq", "auto_gptq"}
)
_UNITS: Final = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass
class Translation:
    """Settings by their names, and what was ignored, each with its reason."""

    settings: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def translate(arguments: Sequence[str], variables: Mapping[str, str]) -> Translation:
    """What ``vllm serve`` with these arguments, in this environment, would be here.

    What vLLM does without being asked is done as well: it listens on all addresses, calls the model by its
    path, and ignores fields of requests that it does not know. Adapters are loaded for this server alone.

    Raises:
        ConfigError: an option is not known, can't be had, or has a malformed value; names it.
    """
    given = _with_file(_read(arguments))
    model = _model(given)
    told = Translation({"model": model, "served_model_name": model, **_BY_ITSELF})
    if key := variables.get("VLLM_API_KEY"):
        told.settings["api_key"] = [key]
    for name, values in given.items():
        if name in SERVED:
            told.settings |= _served(name, values)
        elif name in ONLY:
            if values[-1] not in ONLY[name]:
                raise ConfigError(f"--{name} {values[-1]}: can't be had; only {' or '.join(ONLY[name])}")
        elif name.partition(".")[0] in IGNORED:
            told.ignored[f"--{name}"] = IGNORED[name.partition(".")[0]]
        elif name != "tokenizer" or values[-1] != model:
            raise ConfigError(f"--{name}: there is nothing like it here, and it may change answers")
    return told


def _read(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option by its name, without dashes before it; the model is that of "model"."""
    given: dict[str, list[str]] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        name, value = _option(word)
        if name is None:
            if not word:
                raise ConfigError("an empty word where the model or an option is expected")
            if "model" in given:
                raise ConfigError(f"{word}: a second model, or the value of an option that takes none")
            given["model"] = [word]
            continue
        switch = name.removeprefix("no-")
        if value is None and switch in SWITCHES:
            given[switch] = ["false" if name != switch else "true"]
            continue
        values = [] if value is None else [value]
        while left and _option(left[0])[0] is None and (not values or name in LISTS):
            values.append(left.pop(0))
        if not values:
            raise ConfigError(f"--{name}: has no value")
        given[name] = given.get(name, []) + values if name in LISTS else values
    return given


def _option(word: str) -> tuple[str | None, str | None]:
    """The name of the option that a word is, and the value in it; no name if it is none."""
    for short, name in SHORT.items():
        if word == short or (short == "-O" and re.fullmatch(r"-O\d", word)):
            return name, word[2:] if short == "-O" and word != short else None
    if not word.startswith("--") or word == "--":
        return None, None
    name, equals, value = word[2:].partition("=")
    head, dot, tail = name.partition(".")
    return head.replace("_", "-") + dot + tail, value if equals else None


def _with_file(given: dict[str, list[str]]) -> dict[str, list[str]]:
    """With what the YAML file of ``--config`` says; what stands on the command line beats it."""
    if "config" not in given:
        return given
    file = given.pop("config")[-1]
    try:
        read = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {file}: {error}") from None
    if not isinstance(read, dict):
        raise ConfigError(f"--config {file}: not a mapping")
    return {**_read(list(_words(read))), **given}


def _words(read: Mapping[Any, Any]) -> Iterator[str]:
    for key, value in read.items():
        if isinstance(value, bool):
            yield f"--{key}" if value else f"--no-{key}"
            continue
        yield f"--{key}"
        for each in value if isinstance(value, list) else [value]:
            yield each if isinstance(each, str) else json.dumps(each)


def _model(given: dict[str, list[str]]) -> str:
    for name in ("model", "model-tag"):
        if name in given:
            return given.pop(name)[-1]
    raise ConfigError("no model: vllm-serve MODEL [OPTIONS]")


def _served(name: str, values: Sequence[str]) -> dict[str, Any]:
    """The settings that an option comes to."""
    if name == "served-model-name":
        return {"served_model_name": values[0], "also_served_as": list(values[1:])}
    if name in _LISTED:
        setting, read = _LISTED[name]
        return {setting: read(values)}
    setting = _SETTINGS.get(name, name.replace("-", "_"))
    found = _VALUES.get(name, str)(values[-1])
    return {} if found is None else {setting: found}


_SETTINGS: Final = {
    "enable-log-requests": "access_log",
    "enable-prefix-caching": "enable_prefix_cache",
    "kv-cache-memory-bytes": "kv_cache_memory",
    "max-num-batched-tokens": "max_batch_tokens",
    "otlp-traces-endpoint": "otlp_endpoint",
    "quantization": "quantize",
    "uvicorn-log-level": "log_level",
}


def _dtype(text: str) -> str:
    if text not in _DTYPES:
        raise ConfigError(f"--dtype {text}: none of {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _quantization(text: str) -> str | None:
    if text.lower() in _FOUND_BY_ITSELF:
        return None
    if text == "bitsandbytes":
        return "nf4"
    raise ConfigError(f"--quantization {text}: can't be had; bitsandbytes, or what the checkpoint has")


def _cache(text: str) -> str:
    if text in {"auto", "int8"}:
        return text
    raise ConfigError(f"--kv-cache-dtype {text}: can't be had; auto or int8")


def _number(option: str) -> Callable[[str], int | None]:
    """What reads 4096, 4k (4000) or 4K (4096); "auto" and -1 are None: as if it was not said."""

    def read(text: str) -> int | None:
        if text in {"auto", "-1"}:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text)
        if found is None:
            raise ConfigError(f"--{option} {text}: not a number")
        return int(float(found[1]) * _UNITS[found[2]])

    return read


_VALUES: Final[Mapping[str, Callable[[str], Any]]] = {
    "dtype": _dtype,
    "quantization": _quantization,
    "kv-cache-dtype": _cache,
    "enable-log-requests": lambda text: text == "true",
    "enable-prefix-caching": lambda text: text == "true",
    "uvicorn-log-level": lambda text: _LEVELS.get(text, text),
    **{
        name: _number(name)
        for name in ("max-model-len", "max-num-batched-tokens", "max-num-seqs", "kv-cache-memory-bytes")
    },
}


def _listed(text: str) -> list[str]:
    """A JSON list, or one value."""
    if not text.startswith("["):
        return [text]
    read = _json("allowed-origins", text)
    return [str(each) for each in read]


_NEEDED: Final = frozenset({"name", "path"})


def _modules(text: str) -> Iterator[tuple[str, str]]:
    """Adapters as name=path, as one JSON object with ``name`` and ``path``, or as a list of these.

    KServe quotes them for a shell that it has strip the quotes.
    """
    if len(text) > 1 and text[0] == text[-1] == "'":
        text = text[1:-1]
    if not text.startswith(("{", "[")):
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--lora-modules {text}: write NAME=PATH, or an object with name and path")
        yield name, path
        return
    read = _json("lora-modules", text)
    for each in read if isinstance(read, list) else [read]:
        if not isinstance(each, dict) or not _NEEDED <= each.keys() <= {*_NEEDED, "base_model_name"}:
            raise ConfigError(
                f"--lora-modules {text}: an object has name and path, or base_model_name as well"
            )
        yield str(each["name"]), str(each["path"])


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--{option} {text}: {error}") from None


_LISTED: Final[Mapping[str, tuple[str, Callable[[Sequence[str]], Any]]]] = {
    "lora-modules": ("adapter", lambda texts: dict(each for text in texts for each in _modules(text))),
    "allowed-origins": ("allow_origin", lambda texts: [each for text in texts for each in _listed(text)]),
    "api-key": ("api_key", list),
}
