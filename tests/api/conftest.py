"""One tiny model, a few adapters and one running server for all tests of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.service import Service
from tests.adapter_factory import write_adapter
from tests.api.running import Running, serving, tiny_service
from tests.tiny import tiny_model

ADAPTERS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=2048)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A directory of adapters that clearly change the output, each with its own seed and rank."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_adapter(root / name, model, rank=4 + 4 * seed, seed=seed, targets="all-linear")
    return root


def service_of(data: Path, model: Path, adapters: Path, **options: Any) -> Service:
    """A service that serves all of :data:`ADAPTERS`."""
    named = {name: adapters / name for name in ADAPTERS}
    return tiny_service(model, data, adapter=named, adapter_root=[adapters], **options)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    with serving(service_of(tmp_path_factory.mktemp("data"), model, adapters)) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server that computes few tokens a step, and all of them, so that everything takes many steps."""
    few: dict[str, Any] = {"max_batch_tokens": 16, "max_num_seqs": 8, "enable_prefix_cache": False}
    with serving(service_of(tmp_path_factory.mktemp("data"), model, adapters, **few)) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server. Whatever a test does to it, it must be idle and without leaks at the end."""
    yield shared
    shared.wait_until_idle()
