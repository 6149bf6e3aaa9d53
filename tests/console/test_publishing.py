"""Adapters published in the console, from files and from a source."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.adapters import write_adapter
from tests.support.browser import Window
from tests.support.fleet import told
from tests.support.running_server import Running

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=alert(1)>"


def choose(page: Page, files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("dialog").get_by_role("button", name="Choose files").click()
    chooser.value.set_files(files)


def drop(page: Page, files: list[Path]) -> None:
    """What the browser does when files are dropped."""
    dropped = page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, packed] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(packed), (each) => each.charCodeAt(0))], name));
          }
          return transfer;
        }""",
        [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files],
    )
    zone = page.get_by_role("group", name="Drop the adapter here")
    zone.dispatch_event("dragover", {"dataTransfer": dropped})
    zone.dispatch_event("drop", {"dataTransfer": dropped})


def test_files_are_published_and_a_new_revision_rolled_back(
    window: Window, fleet: Running, console_model: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "one", console_model, rank=2, seed=71)
    write_adapter(tmp_path / "two", console_model, rank=3, seed=72)
    page = window.open(fleet.url, "#/fleet")
    revisions = []
    for folder in ("one", "two"):
        page.get_by_role("button", name="Publish", exact=True).click()
        dialog = page.get_by_role("dialog")
        give = choose if folder == "one" else drop
        give(page, sorted(path for path in (tmp_path / folder).iterdir() if path.is_file()))
        dialog.get_by_role("listitem").filter(has_text="adapter_config.json").wait_for()
        dialog.get_by_label("Name").fill("org/new")
        dialog.get_by_label("Tags").fill("tried, lang=en")
        if folder == "two":
            dialog.get_by_label("Keep what serves under this name").uncheck()
        dialog.get_by_role("button", name="Publish").click()
        page.get_by_role("heading", name="org/new").wait_for()
        dialog.wait_for(state="detached")
        revisions.append(told(fleet, "/v1/adapters/org%2Fnew")["revision"])
    assert told(fleet, "/v1/adapters/org%2Fnew")["tags"] == ["lang=en", "tried"]
    assert revisions[0] != revisions[1]
    page.get_by_role("tab", name="Revisions").click()
    page.get_by_role("button", name="Go back to it").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text(f"org/new serves {revisions[0]} again").wait_for()
    assert told(fleet, "/v1/adapters/org%2Fnew")["revision"] == revisions[0]


def test_what_is_wrong_with_files_is_told(window: Window, fleet: Running, tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / f"{HOSTILE}.txt")
    page = window.open(fleet.url, "#/fleet")
    page.get_by_role("button", name="Publish", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.locator("input[type=file]").set_input_files([tmp_path / f"{HOSTILE}.txt"])
    dialog.get_by_label("Name").fill("broken")
    window.expected.append("answered: 4")
    dialog.get_by_role("button", name="Publish").click()
    dialog.get_by_role("alert").wait_for()
    assert page.locator("img").count() == 0
    dialog.get_by_role("tab", name="A source").click()
    dialog.get_by_role("textbox", name="Source").fill("/etc")
    dialog.get_by_role("button", name="Publish").click()
    dialog.get_by_role("alert").filter(has_text="/etc").wait_for()


def test_a_source_is_published(window: Window, fleet: Running, console_adapters: Path) -> None:
    page = window.open(fleet.url, "#/fleet")
    page.get_by_role("button", name="Publish", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("tab", name="A source").click()
    dialog.get_by_role("textbox", name="Source").fill(str(console_adapters / "gamma"))
    dialog.get_by_label("Name").fill("from-source")
    dialog.get_by_text("Show as curl").click()
    assert "-X PUT" in dialog.locator("pre").inner_text()
    dialog.get_by_role("button", name="Publish").click()
    page.get_by_role("heading", name="from-source").wait_for()
    assert told(fleet, "/v1/adapters/from-source")["digest"] == told(fleet, "/v1/adapters/gamma")["digest"]
