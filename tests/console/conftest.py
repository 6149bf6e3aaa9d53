"""Servers with a console, and a browser that looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.adapters import write_adapter
from tests.support.browser import Browser, Window, open_browser, why_none
from tests.support.playground import Playground, set_length
from tests.support.running_server import Running, serving
from tests.support.served_adapters import ADAPTERS, service_of
from tests.support.tiny_models import tiny_model


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks through a browser is marked as such, and skipped where there is none."""
    why = why_none()
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def console_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


@pytest.fixture(scope="session")
def console_adapters(tmp_path_factory: pytest.TempPathFactory, console_model: Path) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_adapter(root / name, console_model, rank=4 + 4 * seed, seed=seed, targets="all-linear")
    return root


@pytest.fixture(scope="session")
def open_server(
    tmp_path_factory: pytest.TempPathFactory, console_model: Path, console_adapters: Path
) -> Iterator[Running]:
    """A server without keys."""
    with serving(service_of(tmp_path_factory.mktemp("data"), console_model, console_adapters)) as running:
        yield running


@pytest.fixture(scope="session")
def keyed_server(
    tmp_path_factory: pytest.TempPathFactory, console_model: Path, console_adapters: Path
) -> Iterator[Running]:
    """A server with a key of either sort."""
    keys = {"api_key": ["user-key"], "admin_api_key": ["the-admin-key"]}
    service = service_of(tmp_path_factory.mktemp("data"), console_model, console_adapters, **keys)
    with serving(service) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    """A window of its own; at its end the console must have met no fault."""
    with browser.window() as opened:
        yield opened
        opened.check()


@pytest.fixture
def playground(window: Window, open_server: Running) -> Iterator[Playground]:
    page = window.open(open_server.url, "#/playground")
    page.get_by_label("Your message").wait_for()
    made = Playground(page)
    set_length(page, 24)
    yield made
    open_server.wait_until_idle()


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, console_model: Path, console_adapters: Path
) -> Iterator[Running]:
    """A server whose adapters are changed."""
    exports = tmp_path_factory.mktemp("exports")
    service = service_of(
        tmp_path_factory.mktemp("data"), console_model, console_adapters, export_root=exports
    )
    with serving(service) as running:
        yield running
