"""One tiny model, a few adapters and one running server for all tests of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    service = tiny_service(
        model,
        tmp_path_factory.mktemp("data"),
        adapter={name: adapters / name for name in ADAPTERS},
        adapter_root=[adapters],
    )
    with serving(service) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """The shared server. Whatever a test does to it, it must be idle and without leaks at the end."""
    yield shared
    shared.wait_until_idle()
