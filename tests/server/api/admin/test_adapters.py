"""Adapters over HTTP: listed, shown, rolled back, deleted; and every answer says which revision gave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.admin_client import Admin, completion, error_of, publish

pytestmark = pytest.mark.slow


def ask(admin: Admin, model: str, **options: Any) -> Any:
    return admin.server.client().completions.with_raw_response.create(
        model=model, prompt="Hello", temperature=0, max_tokens=4, **options
    )


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
        publish(admin, tmp_path, model, name, seed=number, tags=["even"] if number % 2 == 0 else [])
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
    publish(admin, tmp_path, model, "a", rank=4, targets=["q_proj"], tags=["x", "b"])
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
    assert found["details"] == {"chat_template": "base", "tokenizer": "base", "format": "base"}
    (revision,) = found["revisions"]
    assert (revision["digest"], revision["current"], revision["rank"]) == (digest, True, 4)
    assert revision["base_fingerprint"] == admin.server.service.description["fingerprint"]
    (listed,) = admin.get()["data"]
    assert listed == {key: found[key] for key in listed}


def test_traffic_is_counted(admin: Admin, tmp_path: Path, model: Path) -> None:
    publish(admin, tmp_path, model, "a")
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


def test_rollback(admin: Admin, tmp_path: Path, model: Path) -> None:
    first = publish(admin, tmp_path, model, "a", seed=1, targets="all-linear")
    text_of_first = completion(admin, "a")
    assert error_of(admin.post("a", "rollback")) == (404, "model_not_found", "name")
    second = publish(admin, tmp_path, model, "a", seed=2, targets="all-linear")
    text_of_second = completion(admin, "a")
    assert text_of_first != text_of_second
    back = admin.post("a", "rollback").json()
    assert back["revision"] == first["revision"]
    assert [r["revision"] for r in back["revisions"] if r["current"]] == [first["revision"]]
    assert {r["revision"] for r in back["revisions"]} == {first["revision"], second["revision"]}
    assert completion(admin, "a") == text_of_first
    forth = admin.post("a", "rollback", revision=second["digest"]).json()
    assert forth["revision"] == second["revision"]
    assert completion(admin, "a") == text_of_second
    assert completion(admin, f"a@{first['revision']}") == text_of_first  # earlier ones can be asked for
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
    publish(admin, tmp_path, model, "a")
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


@pytest.mark.sweep
def test_delete_gives_up_at_the_deadline(admin: Admin, tmp_path: Path, model: Path) -> None:
    publish(admin, tmp_path, model, "a")
    stream = admin.server.client().completions.create(
        model="a", prompt="x", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    assert next(stream).choices
    deleted = admin.ask("DELETE", "/a", params={"deadline": "0"}).json()
    assert (deleted["drained"], deleted["running"], deleted["bytes_freed"]) == (False, 1, 0)
    assert error_of(admin.ask("POST", "/v1/completions", json={"model": "a", "prompt": "x"}))[0] == 404
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"  # it was not cut off


def test_every_answer_names_the_revision(admin: Admin, tmp_path: Path, model: Path) -> None:
    revision = publish(admin, tmp_path, model, "a")["revision"]
    raw = ask(admin, "a")
    assert raw.parse().model == raw.headers["x-manylora-model"] == f"a@{revision}"
    with admin.server.client().completions.with_streaming_response.create(
        model="a", prompt="x", max_tokens=1, stream=True
    ) as stream:
        assert stream.headers["x-manylora-model"] == f"a@{revision}"
    assert admin.ask("GET", "/a").headers["x-manylora-model"] == f"a@{revision}"
