"""Loads of one name and one content that come at once, over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin
from tests.support.running_server import serving, tiny_service

pytestmark = pytest.mark.slow

TIMES = 20


@pytest.fixture
def admin(tmp_path: Path, model: Path) -> Iterator[Admin]:
    with serving(tiny_service(model, tmp_path / "data", adapter_root=[tmp_path])) as running:
        yield Admin(running)
        running.wait_until_idle()


def at_once(ask: Callable[[], httpx.Response]) -> Counter[int]:
    """The statuses of :data:`TIMES` requests that are sent together."""
    barrier = Barrier(TIMES)

    def one(_: int) -> int:
        barrier.wait()
        return ask().status_code

    with ThreadPoolExecutor(TIMES) as pool:
        return Counter(pool.map(one, range(TIMES)))


def test_loads(admin: Admin, model: Path, tmp_path: Path) -> None:
    body = {
        "lora_name": "a",
        "lora_path": str(write_adapter(tmp_path / "a", model, rank=16, targets="all-linear")),
    }
    assert at_once(lambda: admin.ask("POST", "/v1/load_lora_adapter", json=body)) == {200: TIMES}
    assert len(admin.get("/a")["revisions"]) == 1


@pytest.mark.parametrize("replace", ["true", "false"])
def test_uploads(admin: Admin, model: Path, tmp_path: Path, replace: str) -> None:
    path = write_adapter(tmp_path / "a", model, rank=16, targets="all-linear")
    found = at_once(lambda: admin.upload("a", path, wait="true", replace=replace))
    assert found == {201: 1, 200: TIMES - 1}
    assert len(admin.get("/a")["revisions"]) == 1
