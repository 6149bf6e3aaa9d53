"""Jobs in a real browser: the check of a file, training that is watched, and what is done with the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import Browser, Window
from tests.support.cable import Cable, cable_to
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.training_data import chat
from tests.support.tuning import packed

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("peft") is None, reason="the extra 'train' is not installed"),
]

HOSTILE = "<img src=x onerror=alert(1)>"
PATIENCE = 120_000  # ms: a process is started that imports the trainer
ROWS = [chat(f"say {n}", f"{n}!") for n in range(24)]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, console_model: Path, console_adapters: Path
) -> Iterator[Running]:
    """A server that trains."""
    keys = {"api_key": ["user-key"], "admin_api_key": ["the-admin-key"]}
    data = tmp_path_factory.mktemp("data")
    service = service_of(data, console_model, console_adapters, training="local", **keys)
    with serving(service) as running:
        yield running


@pytest.fixture(autouse=True)
def _patience(window: Window) -> None:
    window.page.set_default_timeout(PATIENCE)


def drop(page: Page, rows: Sequence[Any], name: str = "rows.jsonl") -> None:
    """Choose a file of rows, and wait for what the check says."""
    zone = page.get_by_role("group", name="Drop the rows to learn from")
    with page.expect_file_chooser() as chooser:
        zone.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files({"name": name, "mimeType": "application/jsonl", "buffer": packed(rows)})
    page.locator("[aria-label=Check][aria-busy=false] :is(.faults, .check-good)").wait_for()


def start(page: Page, name: str, epochs: int, batch: int = 8) -> str:
    """Begin a job on the file that was dropped; its id."""
    page.get_by_label("Name").fill(name)
    page.get_by_label("Passes over the rows").fill(str(epochs))
    page.get_by_label("Rows of a step").fill(str(batch))
    page.get_by_label("Learning rate").fill("30")
    page.get_by_label("Rank of the adapter").fill("4")
    page.get_by_role("button", name="Start training").click()
    page.get_by_role("heading", name=name, level=1).wait_for()
    return page.url.rpartition("/")[2]


def test_what_is_wrong_is_told_by_line_and_what_is_learned_is_marked(window: Window, server: Running) -> None:
    page = window.open_with_key(server.url, "the-admin-key", "#/jobs")
    page.get_by_text("No job yet").wait_for()
    page.get_by_role("button", name="New job").click()
    assert page.get_by_role("button", name="Start training").is_disabled()
    window.expected.append("answered: 400")
    wrong = {"messages": [{"role": "bot", "content": HOSTILE}]}
    drop(page, [*ROWS[:3], wrong, *ROWS[3:9], '{"messages": ['], name=f"{HOSTILE}.jsonl")
    faults = page.locator(".faults li")
    assert [each.split()[:2] for each in faults.all_inner_texts()] == [["line", "4"], ["line", "11"]]
    assert json.dumps(wrong) in faults.first.inner_text()
    assert page.locator("main img").count() == 0
    assert page.get_by_role("button", name="Start training").is_disabled()
    drop(page, ROWS)
    told = page.get_by_role("region", name="Check").inner_text().split("\n")
    assert told[told.index("Rows") + 1] == "24"
    assert told[told.index("Steps") + 1] == "60 of 4 rows"
    assert told[told.index("Memory") + 1].startswith("about ")
    assert page.locator(".example mark").inner_text().startswith("0!")
    assert "say 0" in page.locator(".example span").first.inner_text()
    page.get_by_label("Rank of the adapter").fill("many")
    page.get_by_text("The settings have changed since.").wait_for()
    page.get_by_role("button", name="Check again").click()
    page.get_by_text("This stands against it").wait_for()
    page.locator(".faults", has_text="lora.r").wait_for()


def test_a_model_is_trained_asked_compared_and_merged(window: Window, server: Running) -> None:
    window.expected += ["ERR_"]
    with cable_to(server.url) as cable:
        page = window.open_with_key(cable.url, "the-admin-key", "#/jobs/new")
        drop(page, ROWS)
        start(page, "numbers", 40, batch=2)  # 480 steps, so that it can be met while it trains
        curve = page.get_by_role("region", name="Loss")
        curve.locator("canvas").wait_for()
        page.get_by_text(re.compile(r"step [1-9]")).first.wait_for()
        break_off(page, cable, server)
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("paused", exact=True).wait_for()
        page.get_by_role("button", name="Resume").click()
        page.get_by_role("link", name="Chat with it").wait_for()
        first, last = losses(page)
        assert last < first
        samples = page.get_by_role("region", name="Samples")
        assert samples.get_by_role("listitem").count() == 4
        assert "say 0" in samples.get_by_role("listitem").first.inner_text()
        page.get_by_role("region", name="Results").get_by_role("link", name="Chat").first.wait_for()
        with page.expect_download() as saved:
            page.get_by_role("button", name="step_metrics.csv").click()
        assert saved.value.path().read_text().startswith("step,train_loss")
        go_on(page)


def break_off(page: Page, cable: Cable, server: Running) -> None:
    """The connection is lost while events come, and the page goes on from where it was."""
    cable.cut()
    page.get_by_text("Not connected.").wait_for()
    assert page.get_by_role("region", name="Loss").is_visible()
    cable.join(server.url)
    page.get_by_text("Not connected.").wait_for(state="detached")


def losses(page: Page) -> tuple[float, float]:
    """The first loss that the server told of, and the one that is shown."""
    found = page.evaluate(
        """async () => {
          const key = sessionStorage.getItem('manylora.key');
          const path = `v1/fine_tuning/jobs/${location.hash.split('/').at(-1)}/events?limit=100`;
          const told = await fetch(path, { headers: { authorization: `Bearer ${key}` } });
          const { data: events } = await told.json();
          return events.filter(({ type }) => type === 'metrics').map(({ data }) => data.train_loss);
        }"""
    )
    shown = page.get_by_role("region", name="Loss").locator(".hint").first.inner_text()
    return found[-1], float(shown)


def go_on(page: Page) -> None:
    """Chat with the model that was made, compare it, merge it."""
    page.get_by_role("link", name="Chat with it").click()
    page.get_by_label("Your message").fill("say 3")
    page.keyboard.press("Enter")
    page.locator(".turn.assistant .turn-foot").last.wait_for()
    assert "!" in page.locator(".turn.assistant").last.inner_text()
    page.go_back()
    page.get_by_role("link", name="Compare with base").click()
    page.get_by_role("heading", name="Arena", level=1).wait_for()
    assert "t=tiny&t=ft" in page.url
    page.go_back()
    page.get_by_role("link", name="In the fleet").click()
    page.get_by_role("tab", name="Lineage").click()
    page.get_by_role("group", name="Lineage of ft:tiny").get_by_role("link", name="ftjob-").wait_for()
    page.get_by_role("button", name="Merge").click()
    page.get_by_role("dialog").get_by_role("button", name="Build it").click()
    page.get_by_role("dialog").get_by_role("link", name="@merged").wait_for()


def test_a_job_is_cancelled_and_seen_by_who_may_only_look(window: Window, server: Running) -> None:
    page = window.open_with_key(server.url, "the-admin-key", "#/jobs/new")
    drop(page, ROWS)
    job = start(page, "unwanted", 50)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    page.get_by_text("cancelled", exact=True).wait_for()
    page.get_by_role("button", name="Forget key").click()
    page.get_by_label("API key").fill("user-key")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="unwanted").wait_for()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_role("row").filter(has_text="unwanted").wait_for()
    assert page.get_by_role("button", name="New job").count() == 0
    page.goto(f"{server.url}/console#/jobs/{job}")
    page.get_by_text("What happened").wait_for()
    assert page.get_by_role("button", name="Pause").count() == 0


def test_what_others_write_is_text(window: Window, server: Running) -> None:
    page = window.page
    job = {
        "id": "ftjob-1", "status": "failed", "created_at": 1, "finished_at": 2, "estimated_finish": None,
        "model": HOSTILE, "fine_tuned_model": None, "error": {"message": HOSTILE, "code": "x", "param": None},
        "progress": None, "trained_tokens": None, "hyperparameters": {"n_epochs": HOSTILE},
        "method": {"type": "supervised"}, "user_provided_suffix": HOSTILE, "lora": {"init": HOSTILE},
        "result_files": [], "seed": 1, "training_file": "file-1",
    }  # fmt: skip
    sample = {
        "step": 1,
        "line": 1,
        "prompt": HOSTILE,
        "expected": HOSTILE,
        "base": HOSTILE,
        "trained": HOSTILE,
    }
    events = [
        {
            "id": "1",
            "object": "fine_tuning.job.event",
            "type": "message",
            "level": "error",
            "message": HOSTILE,
        },
        {"id": "2", "object": "fine_tuning.job.event", "type": "sample", "message": "", "data": sample},
    ]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    empty = {"object": "list", "data": [], "has_more": False}
    page.route("**/v1/fine_tuning/jobs/ftjob-1", lambda route: route.fulfill(json=job))
    page.route("**/ftjob-1/checkpoints", lambda route: route.fulfill(json=empty))
    page.route(
        "**/ftjob-1/events?**", lambda route: route.fulfill(body=lines, content_type="text/event-stream")
    )
    window.open_with_key(server.url, "the-admin-key", "#/jobs/ftjob-1")
    page.get_by_role("region", name="Samples").get_by_text(HOSTILE).first.wait_for()
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert page.locator("main img").count() == 0


def test_it_is_there_where_training_is(window: Window, open_server: Running) -> None:
    told = {"object": "access", "may": ["infer", "manage"], "tenant": None, "features": {"training": False}}
    window.page.route("**/v1/access", lambda route: route.fulfill(json=told))
    page = window.open(open_server.url, "#/jobs")
    page.get_by_role("heading", name="There is no").wait_for()
    assert page.get_by_role("link", name="Jobs").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_people_out(browser: Browser, server: Running, scheme: str, width: int) -> None:
    with browser.window(scheme="dark" if scheme == "dark" else "light", width=width) as window:
        page = window.open_with_key(server.url, "the-admin-key", "#/jobs/new")
        page.set_default_timeout(PATIENCE)
        drop(page, ROWS)
        assert window.axe() == []
        page.goto(f"{server.url}/console#/jobs")
        row = page.get_by_role("row").filter(has_text="numbers")
        row.wait_for()
        assert window.axe() == []
        row.click()
        page.get_by_role("region", name="Samples").wait_for()
        assert window.axe() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        window.check()
