"""How embeddings are made, by the files that sentence-transformers keeps beside a model or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.format.files import MODULES_NAME, POOLING_NAME, FileFault
from manylora.adapters.format.pooling import (
    Pooling,
    PoolingConfig,
    parse_pooling,
    read_pooling,
    write_pooling,
)


def modules(*kinds: str, package: str = "sentence_transformers.models") -> bytes:
    return json.dumps(
        [{"idx": i, "path": "", "type": f"{package}.{kind}"} for i, kind in enumerate(kinds)]
    ).encode()


def files(config: Any, *kinds: str) -> dict[str, bytes]:
    steps = kinds or ("Transformer", "Pooling")
    return {MODULES_NAME: modules(*steps), POOLING_NAME: json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("config", "expected"),
    {
        "a flag": ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, Pooling.MEAN),
        "the other": ({"pooling_mode_lasttoken": True}, Pooling.LAST),
        "a word": ({"embedding_dimension": 8, "pooling_mode": "lasttoken"}, Pooling.LAST),
        "a list of one": ({"pooling_mode": ["mean"]}, Pooling.MEAN),
        "a word beside old flags": ({"pooling_mode": "mean", "pooling_mode_lasttoken": True}, Pooling.MEAN),
        "nothing": ({}, Pooling.MEAN),
    }.values(),
)
def test_both_ways_to_write_it(config: dict[str, Any], expected: Pooling) -> None:
    assert parse_pooling(files(config)) == PoolingConfig(expected, normalize=False)
    assert parse_pooling(files(config, "Transformer", "Pooling", "Normalize")) == PoolingConfig(expected)
    del (alone := files(config))[MODULES_NAME]
    assert parse_pooling(alone) == PoolingConfig(expected, normalize=False)


def test_packages_of_newer_versions() -> None:
    given = files({"pooling_mode": "mean"})
    given[MODULES_NAME] = modules(
        "Transformer", "Pooling", "Normalize", package="sentence_transformers.base.modules.any"
    )
    assert parse_pooling(given) == PoolingConfig(Pooling.MEAN)


def test_nothing_is_nothing(tmp_path: Path) -> None:
    assert parse_pooling({}) is None
    assert parse_pooling({MODULES_NAME: modules("Transformer")}) is None
    assert read_pooling(tmp_path) == PoolingConfig()


@pytest.mark.parametrize(
    ("given", "fault"),
    {
        "another mode": (files({"pooling_mode_cls_token": True}), "asks for 'cls'"),
        "two modes": (files({"pooling_mode": ["mean", "max"]}), "asks for"),
        "two flags": (files({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}), "asks for"),
        "no text": (files({"pooling_mode": {"a": 1}}), "asks for"),
        "a step": (files({}, "Transformer", "Pooling", "Dense"), "a step 'Dense'"),
        "no config": ({MODULES_NAME: modules("Transformer", "Pooling")}, f"no {POOLING_NAME}"),
        "no list": ({MODULES_NAME: b"{}", POOLING_NAME: b"{}"}, "not a list of steps"),
        "no steps": ({MODULES_NAME: b"[1]", POOLING_NAME: b"{}"}, "not a list of steps"),
        "no end": ({MODULES_NAME: b"[", POOLING_NAME: b"{}"}, "not valid JSON"),
        "two lists": ({MODULES_NAME: b'[], "steps": []', POOLING_NAME: b"{}"}, "appears twice"),
        "no JSON": ({POOLING_NAME: b"nothing"}, "not valid JSON"),
        "no object": ({POOLING_NAME: b"[]"}, "must hold a JSON object"),
        "depth": ({POOLING_NAME: b'{"a":' + b"[" * 100_000}, "nested too deeply|not valid JSON"),
    }.values(),
)
def test_faults(given: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    """An adapter is refused; a base is served by the default, and the log says so."""
    with pytest.raises(FileFault, match=fault):
        parse_pooling(given)
    (tmp_path / "1_Pooling").mkdir()
    for name, content in given.items():
        (tmp_path / name).write_bytes(content)
    assert read_pooling(tmp_path) == PoolingConfig()


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read(pooling: Pooling, normalize: bool, tmp_path: Path) -> None:
    write_pooling(PoolingConfig(pooling, normalize), 64, tmp_path)
    assert read_pooling(tmp_path) == PoolingConfig(pooling, normalize)
    config = json.loads((tmp_path / POOLING_NAME).read_text())
    assert config["word_embedding_dimension"] == 64
    assert [flag for flag, value in config.items() if flag.startswith("pooling_mode_") and value] == [
        "pooling_mode_mean_tokens" if pooling == Pooling.MEAN else "pooling_mode_lasttoken"
    ]
