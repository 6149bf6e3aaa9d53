"""Who may do what is decided by the route that matched, whatever the request looks like."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute

from manylora.server.api.access.guard import ApiKeySet, Guard
from manylora.server.api.access.redaction import error_redactor
from manylora.server.api.access.scopes import (
    ADMIN,
    INFER,
    MANAGE,
    OPEN,
    KeyScope,
    declared_scope,
    needs,
)
from manylora.server.api.app import create_app
from manylora.server.api.http.error_answers import answer_error
from manylora.server.errors import ServerError
from manylora.server.metrics.metrics import Metrics
from tests.support.running_server import Running, serving, tiny_service
from tests.support.spelled_targets import Asker, Spelling, Told, requests_of, routes, spellings

KEYS = {OPEN: None, INFER: "user", ADMIN: "admin"}
OPEN_ROUTES = {
    *("/", "/docs", "/docs/{name}", "/health", "/ready", "/openapi.json"),
    *("/console", "/console/{version}/{name:path}", "/v1/access"),
}
ADMIN_TAGS = {"adapters", "merged copies", "exports", "tenants"}
CHANGED = ("/v1/fine_tuning/jobs", "/v1/models")  # who asks for answers looks at them, and changes nothing


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    """A server with a key of either sort."""
    data = tmp_path_factory.mktemp("data")
    with serving(tiny_service(model, data, api_key=["user"], admin_api_key=["admin"])) as running:
        yield running


@pytest.fixture
def asker(both: Running) -> Iterator[Asker]:
    asker = Asker(both.url)
    yield asker
    asker.close()


@pytest.mark.slow
def test_every_route_declares_its_scope(both: Running) -> None:
    """A route without a declaration, or of a kind that has no dependencies, fails here."""
    found = routes(create_app(both.service))
    assert len(found) > 30
    for route in found:
        assert isinstance(route.original_route, APIRoute), route.path
        scope = declared_scope(route.endpoint)
        assert scope is not None, route.path
        assert (scope is OPEN) == (route.path in OPEN_ROUTES), route.path
        changes = str(route.path).startswith(CHANGED) and "GET" not in (route.original_route.methods or ())
        assert (scope in {MANAGE, ADMIN}) == (changes or bool(ADMIN_TAGS & set(route.tags))), route.path


@pytest.mark.slow
@pytest.mark.parametrize(
    "share", [pytest.param(6, id="some"), pytest.param(1, marks=pytest.mark.sweep, id="all")]
)
def test_odd_spellings_open_nothing(both: Running, asker: Asker, share: int) -> None:
    """The answer is what the plain path gives that key, or says that there is nothing there.

    Each route in one of ``share`` of the spellings, and over all routes each spelling.
    """
    asked = 0
    for number, (method, path, _) in enumerate(requests_of(create_app(both.service))):
        for key in KEYS.values():
            asked_plainly = asker.ask(Spelling(method, path), key)
            got = asker.ask(Spelling("GET", path), key)
            for spelling in [*spellings(method, path)][number % share :: share]:
                told = asker.ask(spelling, key)
                plain = got if spelling.method == "HEAD" else asked_plainly
                asked += 1
                assert told.status in {404, 405} or _same(spelling, told, plain), (spelling, key, told, plain)
    assert asked > 20_000 / share


def _same(spelling: Spelling, told: Told, plain: Told) -> bool:
    if spelling.method == "HEAD":  # has no body to tell the code
        return told.status == plain.status
    if told.status == 400:  # to whom the route is open: a name that can't be, or a parameter it does not have
        return plain.status not in {401, 403}
    return told == plain


@pytest.mark.slow
def test_plain_paths_give_each_key_what_its_scope_says(both: Running, asker: Asker) -> None:
    for method, path, needed in requests_of(create_app(both.service)):
        for scope, key in KEYS.items():
            told = asker.ask(Spelling(method, path), key)
            refused = Told(401, "invalid_api_key") if scope is OPEN else Told(403, "admin_key_needed")
            assert (told == refused) == (scope < needed), (method, path, key, told)


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "user"])
def test_who_is_refused_has_no_body_read(both: Running, key: str | None) -> None:
    address = urlsplit(both.url)
    header = "" if key is None else f"Authorization: Bearer {key}\r\n"
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            head = f"PUT /v1/adapters/a HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{header}"
            connection.sendall(f"{head}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode())
            assert connection.recv(12) == (b"HTTP/1.1 401" if key is None else b"HTTP/1.1 403")


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    ["admin", "Bearer", "Bearer admin x", "Bearer xadmin", "Basic admin", "Bearer: admin"],
)
def test_malformed_authorization_is_no_key(both: Running, value: str) -> None:
    with both.http() as http:
        for path in ("/v1/adapters", "/v1/models"):
            assert http.get(path, headers={"authorization": value}).status_code == 401, path


def _application(*, keys: list[str], admin_keys: list[str]) -> FastAPI:
    """Routes of each scope behind the guard, in an included router."""
    router = APIRouter(prefix="/v1")

    async def undeclared() -> str:
        return "done"

    for scope in KeyScope:

        @needs(scope)
        async def declared() -> str:
            return "done"

        router.add_api_route(f"/{scope.name.lower()}", declared, methods=["GET"])
    router.add_api_route("/undeclared", undeclared, methods=["GET"])
    app = FastAPI(dependencies=[Depends(Guard(ApiKeySet(keys), ApiKeySet(admin_keys)))])
    app.include_router(router)
    app.state.error_redactor = error_redactor([])
    app.state.service = _Service()
    app.add_exception_handler(ServerError, answer_error)
    return app


class _Service:
    def __init__(self) -> None:
        self.metrics = Metrics()


ALL, NONE = [200, 200, 200], [200, 401, 401]


@pytest.mark.parametrize(
    ("keys", "admin_keys", "given", "statuses"),
    [
        ([], [], None, ALL),
        ([], [], "any", ALL),
        (["user"], [], None, NONE),
        (["user"], [], "wrong", NONE),
        (["user"], [], "user", ALL),
        ([], ["admin"], None, [200, 200, 401]),
        ([], ["admin"], "wrong", [200, 200, 401]),
        ([], ["admin"], "admin", ALL),
        (["user"], ["admin"], None, NONE),
        (["user"], ["admin"], "user", [200, 200, 403]),
        (["user"], ["admin"], "admin", ALL),
        (["user", "second"], ["admin", "other"], "second", [200, 200, 403]),
        (["user", "second"], ["admin", "other"], "other", ALL),
        (["same"], ["same"], "same", ALL),
    ],
)
async def test_scopes_by_key(
    keys: list[str], admin_keys: list[str], given: str | None, statuses: list[int]
) -> None:
    app = _application(keys=keys, admin_keys=admin_keys)
    headers = {} if given is None else {"authorization": f"Bearer {given}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        found = [
            (await http.get(f"/v1/{name}", headers=headers)).status_code
            for name in ("open", "infer", "admin")
        ]
        undeclared = (await http.get("/v1/undeclared", headers=headers)).status_code
    assert found == statuses
    assert undeclared == 403
