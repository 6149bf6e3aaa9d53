"""HEAD, slashes at the end, requests of web pages, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from manylora.server.api.app import create_app
from manylora.server.options.settings import Settings
from tests.support.raw_requests import AsgiExchange
from tests.support.running_server import Running, serving, tiny_service
from tests.support.spelled_targets import requests_of

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    """A server that pages of one origin may use, with a key."""
    service = tiny_service(model, tmp_path_factory.mktemp("data"), allow_origin=[PAGE], api_key=["user"])
    with serving(service) as running:
        yield running


@pytest.mark.slow
def test_head_is_get_without_the_body(server: Running) -> None:
    with server.http() as http:
        for method, path, _ in requests_of(create_app(server.service)):
            head = http.head(path)
            assert head.content == b""
            if method == "GET":
                plain = http.get(path)
                assert head.status_code == plain.status_code, path
                assert head.headers["content-type"] == plain.headers["content-type"], path
        assert int(http.head("/health").headers["content-length"]) > 0
        assert http.head("/v1/chat/completions").status_code == 405


@pytest.mark.slow
async def test_head_sends_no_body_on_its_own(tmp_path: Path, model: Path) -> None:
    """Whatever server is around the application."""
    app = create_app(tiny_service(model, tmp_path))
    exchange = AsgiExchange({}, "/health")
    exchange.scope["method"] = "HEAD"
    async with app.router.lifespan_context(app):
        await exchange.run(app)
    assert exchange.sent[0]["status"] == 200
    assert exchange.payload == b""


@pytest.mark.slow
def test_a_slash_at_the_end_changes_nothing(server: Running) -> None:
    with server.http() as http:
        for path in ("/health", "/v1/models", "/v1/models/alpha", "/v1/adapters/alpha", "/docs"):
            assert http.get(f"{path}/").status_code == 200, path
        answer = http.post("/v1/chat/completions/", json=CHAT)
        assert answer.status_code == 200
        assert answer.json()["object"] == "chat.completion"
        assert http.get("/health//").status_code == 404


@pytest.mark.slow
def test_what_is_this(server: Running) -> None:
    with server.http() as http:
        told = http.get("/")
        page = http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert told.json()["name"] == "manylora"
    assert page.headers["content-type"].startswith("text/html")
    assert "<h1>manylora</h1>" in page.text
    assert told.headers["vary"] == page.headers["vary"] == "accept"


@pytest.mark.slow
def test_links_on_the_first_page_lead_somewhere(server: Running) -> None:
    with server.http() as http:
        told = http.get("/").json()
        for name in ("docs", "openapi", "health", "ready"):
            assert http.get(f"/{told[name]}").status_code == 200


@pytest.mark.slow
def test_the_docs_find_their_files_with_a_slash(server: Running) -> None:
    with server.http(follow_redirects=False) as http:
        assert 'href="../docs/swagger-ui.css"' in http.get("/docs/").text
        assert 'href="docs/swagger-ui.css"' in http.get("/docs").text


@pytest.mark.slow
def test_pages_may_not_ask_by_default(server: Running) -> None:
    with server.http(headers={"origin": PAGE}) as http:
        asked = http.options("/v1/models", headers={"access-control-request-method": "GET"})
        answer = http.get("/v1/models")
    assert asked.status_code == 405
    assert asked.headers["allow"] == "GET"
    for found in (asked, answer):
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.slow
def test_pages_of_an_allowed_origin(pages: Running) -> None:
    names = "authorization, x-other"
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": names}
    with pages.http(headers={"origin": PAGE}) as http:
        asked = http.options("/v1/chat/completions", headers=wanted)  # browsers send no key with it
        answer = http.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer user"})
        refused = http.post("/v1/chat/completions", json=CHAT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-headers"] == names
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert answer.status_code == 200
    assert refused.status_code == 401
    for found in (asked, answer, refused):
        assert found.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in found.headers
    assert "x-manylora-model" in answer.headers["access-control-expose-headers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin", ["https://other.example", f"{PAGE}.evil.example", f"{PAGE}:1", "null", "*"]
)
def test_pages_of_other_origins(pages: Running, origin: str) -> None:
    with pages.http(headers={"origin": origin}) as http:
        asked = http.options("/v1/models", headers={"access-control-request-method": "GET"})
        answer = http.get("/v1/models", headers={"authorization": "Bearer user"})
    assert asked.status_code == 400
    for found in (asked, answer):
        assert "access-control-allow-origin" not in found.headers


@pytest.mark.slow
def test_options_that_no_page_asks(pages: Running) -> None:
    with pages.http() as http:
        assert http.options("/v1/models").status_code == 405


@pytest.mark.parametrize("origin", ["chat.example", f"{PAGE}/", "https://a b", "https://", "**", ""])
def test_malformed_origins_are_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="allow_origin"):
        Settings(allow_origin=[origin])


@pytest.mark.parametrize("origin", ["*", "null", PAGE, "http://localhost:3000", "app://obsidian.md"])
def test_origins(origin: str) -> None:
    assert Settings(allow_origin=[origin]).allow_origin == [origin]


@pytest.mark.slow
def test_directories_in_the_document_are_for_admins(tmp_path: Path, model: Path) -> None:
    root = tmp_path / "secret-place"
    root.mkdir()
    service = tiny_service(model, tmp_path / "data", adapter_root=[root], admin_api_key=["admin"])
    with serving(service) as running, running.http() as http:
        everybody = http.get("/openapi.json")
        admin = http.get("/openapi.json", headers={"authorization": "Bearer admin"})
    assert "secret-place" not in everybody.text
    assert "/adapters/my-adapter" in everybody.text
    assert f"{root}/my-adapter" in admin.text
