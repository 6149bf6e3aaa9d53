"""Tiny models with adapters, made once for all tests that only run requests on them."""

from __future__ import annotations

import pytest

from tests.engine.zoo import Zoo, tiny_zoo
from tests.tiny import tiny_model


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
