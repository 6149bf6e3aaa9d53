"""Tiny models with adapters, made once for all tests that only run requests on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.cpu.sampling import NativeDraw
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.reference import sampling
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.adapter_set import AdapterSet, tiny_adapter_set
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.kernel_cases import library_of
from tests.support.running_engine import RunningEngine, start_engine
from tests.support.running_server import Running, serving
from tests.support.served_adapters import ADAPTERS, service_of
from tests.support.tiny_models import tiny_model


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
def adapter_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AdapterSet:
    """The set of adapters on three models: full attention, a sliding window, and a mixture of both."""
    family, generic = request.param
    model = tiny_model(tmp_path_factory.mktemp(family), family)
    return tiny_adapter_set(tmp_path_factory.mktemp("adapters"), model, family, generic=generic)


@pytest.fixture(scope="session")
def llama_adapter_set(tmp_path_factory: pytest.TempPathFactory) -> AdapterSet:
    """The set of adapters on one tiny Llama."""
    model = tiny_model(tmp_path_factory.mktemp("llama"), "llama", seed=1)
    return tiny_adapter_set(tmp_path_factory.mktemp("adapters"), model, "llama")


@pytest.fixture(scope="session")
def harness(tiny_llama: Path) -> EngineHarness:
    """A tiny Llama for tests that bring engines or adapters of their own."""
    return EngineHarness(tiny_llama)


@pytest.fixture
def setup(harness: EngineHarness, tmp_path: Path) -> Iterator[ManagerSetup]:
    """An adapter manager with room for four adapters."""
    with open_manager_setup(harness, tmp_path, room=4) as made:
        yield made


@pytest.fixture
def small_setup(harness: EngineHarness, tmp_path: Path) -> Iterator[ManagerSetup]:
    """An adapter manager with room for two adapters."""
    with open_manager_setup(harness, tmp_path, room=2) as made:
        yield made


@pytest.fixture
def cached_setup(harness: EngineHarness, tmp_path: Path) -> Iterator[ManagerSetup]:
    """An adapter manager with room for two adapters on the device and four in host memory."""
    with open_manager_setup(harness, tmp_path, room=2, memory=4) as made:
        yield made


@pytest.fixture
async def running_engine(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningEngine]:
    """A running engine on the tiny Llama."""
    async with start_engine(harness, monkeypatch) as made:
        yield made


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
