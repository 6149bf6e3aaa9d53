"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base_models.catalog import resolve_model
from server.config import Settings
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("tiny-llama"), "llama")


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """Directory of the real base model, fetched and converted if this machine does not have it yet."""
    return resolve_model("smollm2-135m", Settings().data_dir)
