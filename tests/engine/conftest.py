"""Tiny models with adapters, made once for all tests that only run requests on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.kernels.cpu.build import usable_variants
from server.kernels.cpu.sampling import NativeDraw
from server.kernels.draws import Draw
from server.kernels.reference import sampling
from tests.engine.desk import Desk, opened
from tests.engine.shop import Shop, open_shop
from tests.engine.zoo import Zoo, tiny_zoo
from tests.harness import Harness
from tests.kernels.worlds import library_of
from tests.tiny import tiny_model


@pytest.fixture(scope="session", params=["pytorch", "native"])
def draw(request: pytest.FixtureRequest) -> Draw:
    """Both ways to draw tokens."""
    if request.param == "pytorch":
        return sampling.draw
    return NativeDraw(library_of(usable_variants()[0]).native, threads=2)


@pytest.fixture(
    scope="session",
    params=[("llama", False), ("mistral", False), ("gemma2", True)],
    ids=["llama-fused", "mistral-fused", "gemma2-generic"],
)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The adapter zoo on three models: full attention, a sliding window, and a mixture of both."""
    family, generic = request.param
    model = tiny_model(tmp_path_factory.mktemp(family), family)
    return tiny_zoo(tmp_path_factory.mktemp("adapters"), model, family, generic=generic)


@pytest.fixture(scope="session")
def llama_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The adapter zoo on one tiny Llama."""
    model = tiny_model(tmp_path_factory.mktemp("llama"), "llama", seed=1)
    return tiny_zoo(tmp_path_factory.mktemp("adapters"), model, "llama")


@pytest.fixture(scope="session")
def harness(tiny_llama: Path) -> Harness:
    """A tiny Llama for tests that bring engines or adapters of their own."""
    return Harness(tiny_llama)


@pytest.fixture
def shop(harness: Harness, tmp_path: Path) -> Iterator[Shop]:
    """An adapter manager with room for four adapters."""
    with open_shop(harness, tmp_path, room=4) as made:
        yield made


@pytest.fixture
def small(harness: Harness, tmp_path: Path) -> Iterator[Shop]:
    """An adapter manager with room for two adapters."""
    with open_shop(harness, tmp_path, room=2) as made:
        yield made


@pytest.fixture
def cached(harness: Harness, tmp_path: Path) -> Iterator[Shop]:
    """An adapter manager with room for two adapters on the device and four in host memory."""
    with open_shop(harness, tmp_path, room=2, memory=4) as made:
        yield made


@pytest.fixture
async def desk(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """A running engine on the tiny Llama."""
    async with opened(harness, monkeypatch) as made:
        yield made
