"""Operations in a real browser: what the server does, tenants with keys and limits, the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.browser import Browser, Window
from tests.support.cable import cable_to
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.tenants import ADMIN, bearer, chat, tenant_key

if TYPE_CHECKING:
    pass

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, console_model: Path, console_adapters: Path
) -> Iterator[Running]:
    """A server with keys, which can have tenants."""
    keys = {"api_key": ["user-key"], "admin_api_key": [ADMIN]}
    service = service_of(tmp_path_factory.mktemp("data"), console_model, console_adapters, **keys)
    with serving(service) as running:
        yield running


def told(server: Running, path: str) -> Any:
    with server.http(headers=bearer(ADMIN)) as http:
        return http.get(path).raise_for_status().json()


def answer(server: Running, *models: str) -> None:
    """Have each model asked at the same time."""

    def one(model: str) -> None:
        body = {**chat(model), "max_tokens": 200, "ignore_eos": True}
        with httpx.Client(base_url=server.url, timeout=60, headers=bearer(ADMIN)) as http:
            http.post("/v1/chat/completions", json=body).raise_for_status()

    with ThreadPoolExecutor(len(models)) as pool:
        list(pool.map(one, models))


def test_what_the_server_does_is_seen(window: Window, server: Running) -> None:
    page = window.open_with_key(server.url, ADMIN, "#/operations")
    page.get_by_text("Of the last").wait_for()
    batch = page.get_by_role("region", name="Batch")
    page.get_by_text("no row at the moment").wait_for()
    answer(server, "alpha", "beta", "tiny")
    for name in ("alpha", "beta", "(base)"):
        batch.get_by_text(name, exact=True).wait_for()
    assert batch.locator(".batch-part").count() == 3
    speed = page.locator(".tile").filter(has_text="Tokens a second").locator("strong")
    assert float(speed.inner_text().replace(",", "")) > 0
    assert "s" in page.locator(".tile").filter(has_text="First token").locator("strong").inner_text()
    steps = page.get_by_role("region", name="Steps")
    steps.get_by_text("A step takes").wait_for()
    assert page.locator(".chart canvas").count() == 4
    memory = page.get_by_role("region", name="Memory")
    blocks = told(server, "/version")["kv_blocks"]
    memory.get_by_text(f"of {blocks:,} blocks").wait_for()
    memory.get_by_role("meter", name="adapters on the device").wait_for()


def test_looking_goes_on_after_a_restart(window: Window, server: Running, keyed_server: Running) -> None:
    window.expected += ["ERR_"]
    answer(server, "alpha")
    with cable_to(server.url) as cable:
        page = window.open_with_key(cable.url, ADMIN, "#/operations")
        page.get_by_text("Of the last").wait_for()
        cable.cut()
        page.get_by_text("Not connected.").wait_for()
        assert page.get_by_role("region", name="Memory").is_visible()
        cable.join(keyed_server.url)  # its counters begin anew
        page.get_by_role("button", name="Try now").click()
        page.get_by_text("Not connected.").wait_for(state="detached")
        answer(keyed_server, "gamma")
        page.get_by_role("region", name="Batch").get_by_text("gamma", exact=True).wait_for()
        assert "-" not in page.locator(".tile strong").first.inner_text()


def test_a_tenant_is_made_limited_and_given_a_key(window: Window, server: Running) -> None:
    page = window.open_with_key(server.url, ADMIN, "#/operations/tenants")
    page.get_by_role("button", name="New tenant").click()
    dialog = page.get_by_role("dialog", name="New tenant")
    dialog.get_by_label("Name").fill("bad name")
    window.expected.append("answered: 400")
    dialog.get_by_role("button", name="Make it").click()
    dialog.get_by_role("alert").wait_for()
    dialog.get_by_label("Name").fill("initech")
    dialog.get_by_label("Adapters that it may use").fill("alpha, beta-*")
    dialog.get_by_role("button", name="Make it").click()
    panel = page.get_by_role("complementary", name="Tenant initech")
    panel.get_by_text("It has taken nothing").wait_for()
    assert told(server, "/v1/tenants/initech")["adapters"] == ["alpha", "beta-*"]
    panel.get_by_role("tab", name="Settings and limits").click()
    panel.get_by_label("Tokens a month").fill("5000")
    panel.get_by_label("Requests a minute").fill("x")
    assert panel.get_by_role("button", name="Save").is_disabled()
    panel.get_by_label("Requests a minute").fill("")
    panel.get_by_label("It may ask for the base model").uncheck()
    panel.get_by_role("button", name="Save").click()
    page.get_by_text("initech is changed").wait_for()
    changed = told(server, "/v1/tenants/initech")
    assert (changed["limits"]["monthly_tokens"], changed["base"]) == (5000, False)
    panel.get_by_role("tab", name="Keys").click()
    panel.get_by_role("button", name="New key").click()
    page.get_by_role("dialog", name="New key").get_by_role("button", name="Make it").click()
    shown = page.get_by_role("dialog", name="The new key")
    key = shown.locator("code").inner_text()
    assert key.startswith("ml-")
    shown.get_by_role("button", name="I have it").click()
    assert key not in page.content()
    with server.http(headers=bearer(key)) as http:
        http.post("/v1/chat/completions", json=chat("alpha")).raise_for_status()
    panel.get_by_role("tab", name="Usage").click()
    panel.get_by_role("row").filter(has_text="alpha").wait_for()
    panel.get_by_role("meter", name="Tokens this month").wait_for()
    panel.get_by_role("tab", name="Keys").click()
    panel.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text("The key opens nothing any more").wait_for()
    with server.http(headers=bearer(key)) as http:
        assert http.post("/v1/chat/completions", json=chat("alpha")).status_code == 401
    panel.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("initech is gone").wait_for()
    assert "initech" not in [each["name"] for each in told(server, "/v1/tenants")["data"]]


def test_the_audit_log_is_read_and_narrowed(window: Window, server: Running) -> None:
    with server.http(headers=bearer(ADMIN)) as http:
        for name in ("logged-one", "logged-two"):
            http.put(f"/v1/aliases/{name}", json={"target": "alpha"}).raise_for_status()
        http.put("/v1/aliases/logged-one", json={"target": "beta"}).raise_for_status()
    page = window.open_with_key(server.url, ADMIN, "#/operations/audit")
    page.get_by_role("row").filter(has_text="logged-two").wait_for()
    page.get_by_label("On", exact=True).fill("logged-one")
    page.get_by_role("row").filter(has_text="logged-two").wait_for(state="detached")
    page.get_by_role("row").nth(2).wait_for()  # what is narrowed is read anew
    assert page.get_by_role("row").count() == 3
    assert "target=logged-one" in page.url
    page.get_by_role("row").nth(1).click()
    entry = page.get_by_role("dialog")
    assert "beta" in entry.locator("pre").last.inner_text()
    assert "alpha" in entry.locator("pre").first.inner_text()
    page.keyboard.press("Escape")
    page.get_by_label("On", exact=True).fill("nothing")
    page.get_by_text("Nothing of that kind was done").wait_for()


def test_what_others_write_is_text(window: Window, server: Running) -> None:
    page = window.page
    metrics = (
        f'manylora_generated_tokens_total{{adapter="{HOSTILE}"}} 5e3\n'
        'manylora_generated_tokens_total{adapter="a\\"b\\\\c"} 7\n'
        "manylora_step_seconds_count 100\nno line at all {\n"
    )
    counted = iter(range(1000))

    def grow(route: Any) -> None:
        more = next(counted)
        body = metrics.replace("5e3", str(5000 + 100 * more)).replace("100\n", f"{100 + 100 * more}\n")
        route.fulfill(body=body, content_type="text/plain")

    entry = {
        "id": "1",
        "time": 1.8e9,
        "who": HOSTILE,
        "tenant": HOSTILE,
        "action": HOSTILE,
        "target": HOSTILE,
    }
    entry |= {"address": HOSTILE, "request": HOSTILE, "status": 200, "before": None, "after": {"a": HOSTILE}}
    page.route("**/metrics", grow)
    page.route("**/v1/audit?**", lambda route: route.fulfill(json={"data": [entry], "has_more": False}))
    window.open_with_key(server.url, ADMIN, "#/operations")
    page.get_by_role("region", name="Batch").get_by_text(HOSTILE, exact=True).wait_for()
    assert page.locator("img").count() == 0
    page.get_by_role("tab", name="Audit log").click()
    page.get_by_role("row").nth(1).click()
    page.get_by_role("dialog").get_by_role("heading", name=HOSTILE).wait_for()
    assert page.locator("img").count() == 0


def test_it_is_the_operators(window: Window, server: Running) -> None:
    with server.http() as http:
        key = tenant_key(http, "hooli")
    page = window.open_with_key(server.url, key, "#/operations")
    page.get_by_role("heading", name="There is no").wait_for()
    assert page.get_by_role("link", name="Operations").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_people_out(browser: Browser, server: Running, scheme: str, width: int) -> None:
    with server.http(headers=bearer(ADMIN)) as http:
        if http.get("/v1/tenants/umbrella").status_code == 404:
            tenant_key(http, "umbrella")
    with browser.window(scheme="dark" if scheme == "dark" else "light", width=width) as window:
        page = window.open_with_key(server.url, ADMIN, "#/operations")
        page.get_by_role("region", name="Memory").wait_for()
        assert window.axe() == []
        page.goto(f"{server.url}/console#/operations/tenants/umbrella")
        for tab in ("Usage", "Keys", "Settings and limits"):
            page.get_by_role("tab", name=tab, exact=True).click()
            assert window.axe() == []
        page.goto(f"{server.url}/console#/operations/audit")
        page.get_by_role("row").nth(1).wait_for()
        assert window.axe() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.check()
