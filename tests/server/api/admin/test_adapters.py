"""What there is and what can be done with it: listing, showing, pinning, moving, rolling back, deleting."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, error_of
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


def put(admin: Admin, directory: Path, model: Path, name: str, *, seed: int = 0, **options: Any) -> Any:
    """Publish a new adapter; what the server says of it."""
    tags = options.pop("tags", ())
    path = write_adapter(directory / f"{name}-{seed}", model, seed=seed, **options)
    answer = admin.upload(name, path, tags=tags, wait="true")
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def ask(admin: Admin, model: str, **options: Any) -> Any:
    return admin.server.client().completions.with_raw_response.create(
        model=model, prompt="Hello", temperature=0, max_tokens=4, **options
    )


def text(admin: Admin, model: str) -> str:
    client = admin.server.client()
    return client.completions.create(model=model, prompt="Hello", temperature=0, max_tokens=8).choices[0].text


def test_nothing_yet(admin: Admin) -> None:
    expected: dict[str, Any] = {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert admin.get() == expected
    for method, path in (
        ("GET", "/a"),
        ("DELETE", "/a"),
        *(("POST", f"/a/{action}") for action in ("pin", "unpin", "prefetch", "evict", "rollback")),
    ):
        assert error_of(admin.ask(method, path)) == (404, "model_not_found", "name")


def test_filters_and_pages(admin: Admin, tmp_path: Path, model: Path) -> None:
    for number, name in enumerate(("b", "a-1", "a-2", "c")):
        put(admin, tmp_path, model, name, seed=number, tags=["even"] if number % 2 == 0 else [])
    assert admin.names() == ["a-1", "a-2", "b", "c"]
    assert admin.names(prefix="a-") == ["a-1", "a-2"]
    assert admin.names(tag="even") == ["a-2", "b"]
    assert admin.names(state="ready") == ["a-1", "a-2", "b", "c"]
    assert admin.names(state="failed") == []
    assert admin.names(after="a-2") == ["b", "c"]
    assert admin.names(prefix="a-", tag="even") == ["a-2"]
    assert admin.post("b", "evict").status_code == 200
    assert admin.names(resident="false") == ["b"]
    assert admin.names(resident="true") == ["a-1", "a-2", "c"]
    seen, after = [], ""
    for expected in (3, 1):
        page = admin.get(limit=3, after=after)
        assert len(page["data"]) == expected
        assert page["has_more"] == (expected == 3)
        assert page["first_id"] == page["data"][0]["id"]
        after = page["last_id"]
        seen += [adapter["id"] for adapter in page["data"]]
    assert seen == ["a-1", "a-2", "b", "c"]
    assert admin.get(limit=4)["has_more"] is False


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"state": "asleep"}, "state"),
        ({"resident": "perhaps"}, "resident"),
        ({"prefix": "x" * 600}, "prefix"),
        ({"color": "red"}, "color"),
    ],
)
def test_bad_queries(admin: Admin, query: dict[str, str], param: str) -> None:
    status, _, named = error_of(admin.ask("GET", "", params=query))
    assert (status, named) == (400, param)


def test_what_is_shown_of_one(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a", rank=4, targets=["q_proj"], tags=["x", "b"])
    found = admin.get("/a")
    digest = found["digest"]
    assert len(digest) == 64
    shown = {key: found[key] for key in ("id", "object", "state", "error", "pinned", "tags", "kind", "rank")}
    assert shown == {
        "id": "a",
        "object": "adapter",
        "state": "ready",
        "error": None,
        "pinned": False,
        "tags": ["b", "x"],
        "kind": "LORA",
        "rank": 4,
    }
    assert (found["modules"], found["total_modules"]) == (2, 14)
    assert found["revision"] == digest[:8]
    assert found["source"] == "upload://"
    assert found["base_model"] == "base"
    assert found["residency"]["device"] > 0
    assert found["residency"]["disk"] > 0
    assert found["created"] <= found["updated"]
    assert found["last_used"] is None
    none = {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0, "running": 0}
    assert found["traffic"] == {**none, "scores": 0, "mean_score": None}
    assert found["publication"]["state"] == "ready"
    assert found["details"] == {"chat_template": "base", "tokenizer": "base"}
    (revision,) = found["revisions"]
    assert (revision["digest"], revision["current"], revision["rank"]) == (digest, True, 4)
    assert revision["base_fingerprint"] == admin.server.service.description["fingerprint"]
    (listed,) = admin.get()["data"]
    assert listed == {key: found[key] for key in listed}


def test_traffic_is_counted(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a")
    used = [ask(admin, "a").parse().usage for _ in range(2)]
    traffic = admin.get("/a")["traffic"]
    assert traffic == {
        "requests": 2,
        "prompt_tokens": sum(usage.prompt_tokens for usage in used),
        "generated_tokens": sum(usage.completion_tokens for usage in used),
        "running": 0,
        "scores": 0,
        "mean_score": None,
    }
    assert admin.get("/a")["last_used"] >= admin.get("/a")["created"]
    stream = admin.server.client().completions.create(
        model="a", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    assert admin.get("/a")["traffic"]["running"] == 1
    stream.close()


def test_pin_and_evict(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a")
    before = text(admin, "a")
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
    assert text(admin, "a") == before  # the request brings it back
    assert admin.get("/a")["residency"]["device"] > 0


def test_what_is_on_the_device_or_in_memory_serves_without_its_files(
    admin: Admin, tmp_path: Path, model: Path
) -> None:
    digest = put(admin, tmp_path, model, "a")["digest"]
    before = text(admin, "a")
    residency = admin.server.service.adapters.residency
    shutil.rmtree(admin.server.service.store.path(digest))
    assert text(admin, "a") == before
    admin.server.call(residency.device.remove(residency.references.revision(digest)))
    assert admin.get("/a")["residency"]["device"] == 0 < admin.get("/a")["residency"]["memory"]
    assert text(admin, "a") == before


def test_an_adapter_in_use_is_not_evicted(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a")
    stream = admin.server.client().completions.create(
        model="a", prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    assert error_of(admin.post("a", "evict"))[:2] == (409, "adapter_in_use")
    stream.close()


def test_files_that_are_gone(admin: Admin, tmp_path: Path, model: Path) -> None:
    """Whoever finds out is told, with the remedy; from then on the name is shown as failed."""
    digest = put(admin, tmp_path, model, "a")["digest"]
    before = text(admin, "a")
    assert admin.post("a", "evict").status_code == 200
    whole = admin.server.service.store.path(digest)
    for file in whole.iterdir():  # what nobody should do by hand
        file.unlink()
    with pytest.raises(openai.InternalServerError) as told:
        text(admin, "a")
    assert (told.value.status_code, told.value.code) == (503, "adapter_unavailable")
    assert (
        f"'a@{digest[:8]}' can't be loaded: the files of revision {digest[:8]} are missing from the server's "
        "store; publish it again or roll it back to another revision"
    ) in told.value.message
    with pytest.raises(openai.NotFoundError, match="missing from the store"):
        text(admin, "a")
    shown = admin.get("/a")
    assert shown["state"] == "failed"
    assert "missing from the store" in shown["error"]
    assert shown["residency"] == {"device": 0, "memory": 0, "disk": 0}
    assert put(admin, tmp_path, model, "a")["state"] == "ready"
    assert admin.post("a", "evict").status_code == 200
    assert text(admin, "a") == before


def test_rollback(admin: Admin, tmp_path: Path, model: Path) -> None:
    first = put(admin, tmp_path, model, "a", seed=1, targets="all-linear")
    text_of_first = text(admin, "a")
    assert error_of(admin.post("a", "rollback")) == (404, "model_not_found", "name")
    second = put(admin, tmp_path, model, "a", seed=2, targets="all-linear")
    text_of_second = text(admin, "a")
    assert text_of_first != text_of_second
    back = admin.post("a", "rollback").json()
    assert back["revision"] == first["revision"]
    assert [r["revision"] for r in back["revisions"] if r["current"]] == [first["revision"]]
    assert {r["revision"] for r in back["revisions"]} == {first["revision"], second["revision"]}
    assert text(admin, "a") == text_of_first
    forth = admin.post("a", "rollback", revision=second["digest"]).json()
    assert forth["revision"] == second["revision"]
    assert text(admin, "a") == text_of_second
    assert text(admin, f"a@{first['revision']}") == text_of_first  # earlier ones can be asked for
    assert error_of(admin.post("a", "rollback", revision="0" * 64)) == (404, "model_not_found", "revision")


@pytest.mark.parametrize(
    ("action", "body", "param"),
    [
        ("rollback", {"revision": "xyz"}, "revision"),
        ("rollback", {"revision": 3}, "revision"),
        ("rollback", {"rev": "0000"}, "rev"),
        ("pin", {"until": "tomorrow"}, "until"),
    ],
)
def test_bad_bodies(admin: Admin, action: str, body: dict[str, Any], param: str) -> None:
    status, _, named = error_of(admin.post("a", action, **body))
    assert (status, named) == (400, param)


def test_delete(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a")
    device = admin.get("/a")["residency"]["device"]
    deleted = admin.ask("DELETE", "/a")
    assert deleted.status_code == 200
    assert deleted.json() == {
        "id": "a",
        "object": "adapter.deleted",
        "deleted": True,
        "bytes_freed": device,
        "drained": True,
        "running": 0,
    }
    assert error_of(admin.ask("DELETE", "/a")) == (404, "model_not_found", "name")
    assert admin.names() == []
    for deadline in ("-1", "3601", "nan", "soon"):
        assert error_of(admin.ask("DELETE", "/a", params={"deadline": deadline}))[2] == "deadline"
    assert error_of(admin.ask("DELETE", "/a", params={"dedline": "1"}))[2] == "dedline"


def test_delete_gives_up_at_the_deadline(admin: Admin, tmp_path: Path, model: Path) -> None:
    put(admin, tmp_path, model, "a")
    stream = admin.server.client().completions.create(
        model="a", prompt="x", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    deleted = admin.ask("DELETE", "/a", params={"deadline": "0"}).json()
    assert (deleted["drained"], deleted["running"], deleted["bytes_freed"]) == (False, 1, 0)
    assert error_of(admin.ask("POST", "/v1/completions", json={"model": "a", "prompt": "x"}))[0] == 404
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"  # it was not cut off


def test_every_answer_names_the_revision(admin: Admin, tmp_path: Path, model: Path) -> None:
    revision = put(admin, tmp_path, model, "a")["revision"]
    raw = ask(admin, "a")
    assert raw.parse().model == raw.headers["x-manylora-model"] == f"a@{revision}"
    with admin.server.client().completions.with_streaming_response.create(
        model="a", prompt="x", max_tokens=1, stream=True
    ) as stream:
        assert stream.headers["x-manylora-model"] == f"a@{revision}"
    assert admin.ask("GET", "/a").headers["x-manylora-model"] == f"a@{revision}"
