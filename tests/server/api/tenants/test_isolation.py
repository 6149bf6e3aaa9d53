"""What a tenant can't see is answered as if it were not there; what it keeps is its own."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.running_server import Running
from tests.support.tenant_routes import LONG, NAMING
from tests.support.tenants import ADMIN, bearer, chat, tenant_key
from tests.support.waiting import wait_until

TOLD = re.compile(r"alpha|gamma|absent-\w+|req-\w+")


def same_but_for_names(told: httpx.Response, absent: httpx.Response) -> bool:
    """Whether two answers differ in nothing but the name that was asked for."""
    return told.status_code == absent.status_code and TOLD.sub("?", told.text) == TOLD.sub("?", absent.text)


@pytest.mark.parametrize("path", NAMING)
def test_others_adapters_are_answered_like_what_is_not_there(http: httpx.Client, path: str) -> None:
    key = bearer(tenant_key(http, "acme", ["beta", "gam", "alpha2", "Alpha"]))
    for form in ("{}", "{}@0123abcd", "{}*0.5+beta*0.5", "{}@merged"):
        absent = http.post(path, json=NAMING[path](form.format("absent-one")), headers=key)
        assert absent.status_code == 404
        for hidden in ("alpha", "gamma"):
            told = http.post(path, json=NAMING[path](form.format(hidden)), headers=key)
            assert same_but_for_names(told, absent), (told.text, absent.text)


def test_nor_is_their_tokenizer(http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["beta"]))
    told, absent = (
        http.get("/tokenizer_info", params={"model": name}, headers=key) for name in ("alpha", "absent-one")
    )
    assert absent.status_code == 404
    assert same_but_for_names(told, absent)


def test_the_list_of_adapters_hides_others(http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["beta"]))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    entries = [{"name": "beta", "weight": 0.5}, {"name": "alpha", "weight": 0.5}]
    told = http.post("/v1/chat/completions", json={**body, "adapters": entries}, headers=key)
    entries[1]["name"] = "absent-one"
    absent = http.post("/v1/chat/completions", json={**body, "adapters": entries}, headers=key)
    assert told.json()["error"]["param"] == "adapters[1].name"
    assert same_but_for_names(told, absent)


def test_models_lists_and_shows_what_a_tenant_may_use(http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["be*"]))
    listed = http.get("/v1/models", headers=key)
    assert [model["id"] for model in listed.json()["data"]] == ["tiny", "beta"]
    assert "alpha" not in listed.text
    assert http.get("/v1/models/beta", headers=key).status_code == 200
    for form in ("{}", "{}@0123abcd", "{}+beta", "beta+{}"):
        told = http.get(f"/v1/models/{form.format('alpha')}", headers=key)
        absent = http.get(f"/v1/models/{form.format('absent-one')}", headers=key)
        assert told.status_code == 404
        assert same_but_for_names(told, absent)
    for headers in (key, {}):  # "alpha" is a word of OpenAI's paths
        assert "gamma" not in http.get("/openapi.json", headers=headers).text
    everything = http.get("/v1/models", headers=bearer(ADMIN)).json()["data"]
    assert {"alpha", "beta", "gamma"} < {model["id"] for model in everything}


def test_without_the_base_it_is_not_there(http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["beta"], base=False))
    assert [model["id"] for model in http.get("/v1/models", headers=key).json()["data"]] == ["beta"]
    assert http.get("/v1/models/tiny", headers=key).status_code == 404
    for path, body in NAMING.items():
        assert http.post(path, json=body("tiny"), headers=key).status_code == 404, path
    assert http.post("/tokenize", json={"prompt": "Hello"}, headers=key).status_code == 404
    assert http.post("/v1/chat/completions", json=chat("beta"), headers=key).status_code == 200


def test_an_alias_is_there_if_all_it_stands_for_is(http: httpx.Client) -> None:
    admin = bearer(ADMIN)
    key = bearer(tenant_key(http, "acme", ["beta", "live", "mixed", "based"], base=False))

    def alias(name: str, *targets: str) -> None:
        split = [{"target": target, "share": 1} for target in targets]
        assert http.put(f"/v1/aliases/{name}", json={"split": split}, headers=admin).status_code == 200

    alias("live", "beta")
    alias("mixed", "beta", "alpha")
    alias("based", "tiny", "beta")
    alias("other", "beta")
    assert [model["id"] for model in http.get("/v1/models", headers=key).json()["data"]] == ["beta", "live"]
    assert http.post("/v1/chat/completions", json=chat("live"), headers=key).status_code == 200
    for hidden in ("mixed", "based", "other"):
        told = http.post("/v1/chat/completions", json=chat(hidden), headers=key)
        assert told.status_code == 404
        assert told.json()["error"]["message"] == f"no adapter is registered under the name '{hidden}'"
        assert http.get(f"/v1/models/{hidden}", headers=key).status_code == 404
    alias("live", "alpha")  # what it stands for decides at each request
    assert http.post("/v1/chat/completions", json=chat("live"), headers=key).status_code == 404


def test_a_change_of_settings_holds_from_the_next_request_on(http: httpx.Client) -> None:
    key = bearer(tenant_key(http, "acme", ["beta"]))
    assert http.post("/v1/chat/completions", json=chat("alpha"), headers=key).status_code == 404
    http.patch("/v1/tenants/acme", json={"adapters": ["alpha"]}, headers=bearer(ADMIN))
    assert http.post("/v1/chat/completions", json=chat("alpha"), headers=key).status_code == 200
    assert http.post("/v1/chat/completions", json=chat("beta"), headers=key).status_code == 404


@pytest.mark.parametrize("salt", [None, "shared"])
def test_cached_prompts_are_a_tenants_own(http: httpx.Client, salt: str | None) -> None:
    """Also with the same ``cache_salt``, which they could guess."""
    keys = [tenant_key(http, name, ["alpha"]) for name in ("acme", "globex")]
    body = {"model": "alpha", "messages": LONG, "max_tokens": 1}
    body |= {} if salt is None else {"cache_salt": salt}

    def cached(key: str) -> int:
        told = http.post("/v1/chat/completions", json=body, headers=bearer(key)).json()
        found: int = told["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached(ADMIN) == 0
    assert cached(ADMIN) > 0
    for key in keys:
        assert cached(key) == 0
        assert cached(key) > 0


def test_files_are_a_tenants_own(http: httpx.Client) -> None:
    mine, theirs = (bearer(tenant_key(http, name)) for name in ("acme", "globex"))
    admin = bearer(ADMIN)
    upload = {"file": ("in.jsonl", b"{}\n")}
    file = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=mine).json()["id"]
    own = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=admin).json()["id"]
    for hidden in (file, own, "file-absent"):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            told = http.request(method, f"/v1/files/{hidden}{path}", headers=theirs)
            assert told.status_code == 404
            assert told.json()["error"]["message"] == f"No such File object: {hidden}"
        batch = {"input_file_id": hidden, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert http.post("/v1/batches", json=batch, headers=theirs).status_code == 404
        assert http.get(f"/v1/files?after={hidden}", headers=theirs).status_code == 400
    assert http.get("/v1/files", headers=theirs).json()["data"] == []
    assert [f["id"] for f in http.get("/v1/files", headers=mine).json()["data"]] == [file]
    assert {file, own} <= {f["id"] for f in http.get("/v1/files", headers=admin).json()["data"]}
    assert http.delete(f"/v1/files/{file}", headers=mine).status_code == 200
    assert http.delete(f"/v1/files/{own}", headers=admin).status_code == 200


def test_batches_run_with_their_tenants_rights(server: Running, http: httpx.Client) -> None:
    mine = bearer(tenant_key(http, "acme", ["beta"]))
    theirs = bearer(tenant_key(http, "globex", ["alpha"]))
    lines = "".join(
        f'{{"custom_id": "{model}", "method": "POST", "url": "/v1/chat/completions", "body": '
        f'{{"model": "{model}", "messages": [{{"role": "user", "content": "x"}}], "max_tokens": 1}}}}\n'
        for model in ("beta", "alpha")
    )
    upload = {"file": ("in.jsonl", lines.encode())}
    file = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=mine).json()["id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = http.post("/v1/batches", json=body, headers=mine).json()["id"]
    wait_until(lambda: http.get(f"/v1/batches/{batch}", headers=mine).json()["status"] == "completed")
    found = http.get(f"/v1/batches/{batch}", headers=mine).json()
    assert found["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    done = http.get(f"/v1/files/{found['output_file_id']}/content", headers=mine).text
    failed = http.get(f"/v1/files/{found['error_file_id']}/content", headers=mine).text
    assert '"beta"' in done
    assert '"alpha"' not in done
    assert "model_not_found" in failed
    for path in (f"/v1/batches/{batch}", f"/v1/files/{found['output_file_id']}/content"):
        assert http.get(path, headers=theirs).status_code == 404
    assert http.post(f"/v1/batches/{batch}/cancel", headers=theirs).status_code == 404
    assert http.get("/v1/batches", headers=theirs).json()["data"] == []
    assert http.get(f"/v1/batches?after={batch}", headers=theirs).status_code == 400
    assert [b["id"] for b in http.get("/v1/batches", headers=mine).json()["data"]] == [batch]
    assert batch in {b["id"] for b in http.get("/v1/batches", headers=bearer(ADMIN)).json()["data"]}


@pytest.mark.parametrize("background", [False, True])
def test_responses_are_a_tenants_own(http: httpx.Client, background: bool) -> None:
    mine, theirs = (bearer(tenant_key(http, name)) for name in ("acme", "globex"))
    body = {"model": "tiny", "input": "Hello", "max_output_tokens": 200 if background else 2}
    made = http.post("/v1/responses", json={**body, "background": background}, headers=mine).json()["id"]
    for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
        told = http.request(method, f"/v1/responses/{made}{path}", headers=theirs)
        assert told.status_code == 404, path
        assert told.json()["error"]["message"] == f"No response found with id '{made}'"
    follow = {**body, "previous_response_id": made}
    assert http.post("/v1/responses", json=follow, headers=theirs).status_code == 404
    assert http.post("/v1/responses/input_tokens", json=follow, headers=theirs).status_code == 404
    assert http.get(f"/v1/responses/{made}", headers=mine).status_code == 200
    assert http.get(f"/v1/responses/{made}", headers=bearer(ADMIN)).status_code == 200
    if background:
        assert http.post(f"/v1/responses/{made}/cancel", headers=mine).status_code == 200
    assert http.delete(f"/v1/responses/{made}", headers=mine).status_code == 200


def test_answers_are_scored_by_who_got_them(http: httpx.Client) -> None:
    """Though clients may choose the ids of their answers, and choose the same."""
    mine, theirs = (bearer(tenant_key(http, name, ["alpha", "beta"])) for name in ("acme", "globex"))
    asked = chat("alpha", request_id="chosen")
    answer = http.post("/v1/chat/completions", json=asked, headers=mine).json()["id"]
    score = {"response_id": answer, "score": 1}
    for others in (theirs, bearer(ADMIN)):
        assert http.post("/v1/feedback", json=score, headers=others).status_code == 404
    asked = chat("beta", request_id="chosen")
    assert http.post("/v1/chat/completions", json=asked, headers=theirs).json()["id"] == answer
    assert http.post("/v1/feedback", json=score, headers=mine).json()["model"].startswith("alpha@")
    assert http.post("/v1/feedback", json=score, headers=theirs).json()["model"].startswith("beta@")


def test_what_a_tenant_kept_is_not_its_successors(http: httpx.Client) -> None:
    first = bearer(tenant_key(http, "acme"))
    upload = {"file": ("in.jsonl", b"{}\n")}
    file = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=first).json()["id"]
    http.delete("/v1/tenants/acme", headers=bearer(ADMIN))
    second = bearer(tenant_key(http, "acme"))
    assert http.get(f"/v1/files/{file}", headers=first).status_code == 401
    assert http.get(f"/v1/files/{file}", headers=second).status_code == 404
    assert http.delete(f"/v1/files/{file}", headers=bearer(ADMIN)).status_code == 200
