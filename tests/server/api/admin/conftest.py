"""A server without adapters, for the tests that publish their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.admin_client import Admin
from tests.support.running_server import Running, serving, tiny_service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.fixture
def admin(running: Running) -> Iterator[Admin]:
    """A server without adapters; what a test publishes is deleted after it, and leaves nothing behind."""
    admin = Admin(running)
    yield admin
    admin.forget_all()
    running.wait_until_idle()
    assert running.service.metrics.registry.get_sample_value("manylora_adapters_resident_bytes") == 0
