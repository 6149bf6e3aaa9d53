"""Where an adapter is, over HTTP: pinned, evicted, prefetched, and served without its files if it can be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.admin_client import Admin, completion, error_of, publish
from tests.support.running_server import serving, tiny_service

pytestmark = pytest.mark.slow


def test_pin_and_evict(admin: Admin, tmp_path: Path, model: Path) -> None:
    publish(admin, tmp_path, model, "a")
    before = completion(admin, "a")
    assert admin.post("a", "pin").json()["pinned"] is True
    assert error_of(admin.post("a", "evict"))[:2] == (409, "adapter_in_use")
    assert admin.get("/a")["residency"]["device"] > 0
    assert admin.post("a", "unpin").json()["pinned"] is False
    evicted = admin.post("a", "evict").json()
    assert evicted["residency"]["device"] == evicted["residency"]["memory"] == 0
    assert evicted["residency"]["disk"] > 0
    fetched = admin.post("a", "prefetch").json()
    assert fetched["residency"]["device"] > 0
    assert admin.post("a", "evict").status_code == 200
    assert completion(admin, "a") == before  # the request brings it back
    assert admin.get("/a")["residency"]["device"] > 0


def test_what_is_on_the_device_or_in_memory_serves_without_its_files(
    admin: Admin, tmp_path: Path, model: Path
) -> None:
    size = publish(admin, tmp_path, model, "a")["residency"]["device"]
    one: dict[str, Any] = {"adapter_memory": int(1.5 * size), "adapter_cache_memory": 3 * size}
    with serving(tiny_service(model, tmp_path / "data", **one)) as running:
        admin = Admin(running)
        digest = publish(admin, tmp_path, model, "a")["digest"]
        publish(admin, tmp_path, model, "b", seed=1)
        before = completion(admin, "a")
        shutil.rmtree(running.service.store.path(digest))
        assert admin.get("/a")["residency"]["device"] == size
        assert completion(admin, "a") == before
        assert completion(admin, "b")  # which takes its place on the device
        assert admin.get("/a")["residency"]["device"] == 0 < admin.get("/a")["residency"]["memory"]
        assert completion(admin, "a") == before
        running.wait_until_idle()


def test_an_adapter_in_use_is_not_evicted(admin: Admin, tmp_path: Path, model: Path) -> None:
    publish(admin, tmp_path, model, "a")
    stream = admin.server.client().completions.create(
        model="a", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    assert error_of(admin.post("a", "evict"))[:2] == (409, "adapter_in_use")
    stream.close()


def test_files_that_are_gone(admin: Admin, tmp_path: Path, model: Path) -> None:
    """Whoever finds out is told, with the remedy; from then on the name is shown as failed."""
    digest = publish(admin, tmp_path, model, "a")["digest"]
    before = completion(admin, "a")
    assert admin.post("a", "evict").status_code == 200
    whole = admin.server.service.store.path(digest)
    for file in whole.iterdir():  # what nobody should do by hand
        file.unlink()
    with pytest.raises(openai.InternalServerError) as told:
        completion(admin, "a")
    assert (told.value.status_code, told.value.code) == (503, "adapter_unavailable")
    assert (
        f"'a@{digest[:8]}' can't be loaded: the files of revision {digest[:8]} are missing from the server's "
        "store; publish it again or roll it back to another revision"
    ) in told.value.message
    with pytest.raises(openai.NotFoundError, match="missing from the store"):
        completion(admin, "a")
    shown = admin.get("/a")
    assert shown["state"] == "failed"
    assert "missing from the store" in shown["error"]
    assert shown["residency"] == {"device": 0, "memory": 0, "disk": 0}
    assert publish(admin, tmp_path, model, "a")["state"] == "ready"
    assert admin.post("a", "evict").status_code == 200
    assert completion(admin, "a") == before
