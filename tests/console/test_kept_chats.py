"""Chats that the browser keeps, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_texts import HOSTILE, check_harmless
from tests.support.playground import Playground


def test_the_chat_is_there_when_one_comes_back(playground: Playground) -> None:
    page = playground.page
    playground.ask("Hello again")
    page.get_by_role("link", name="Arena").click()
    page.get_by_role("heading", name="Arena").wait_for()
    page.get_by_role("link", name="Playground").click()
    page.get_by_role("article", name="You").get_by_text("Hello again").wait_for()


def test_chats_are_kept_taken_out_and_brought_in(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    playground.pick("alpha")
    playground.ask("Remember me <b>")
    said = playground.last()
    page.reload()
    page.get_by_text("Remember me <b>").wait_for()
    assert playground.last() == said
    page.get_by_role("button", name="New chat").click()
    page.get_by_text("Ask alpha").wait_for()
    page.get_by_role("button", name="Chats in this browser").click()
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Export “Remember me <b>”").click()
    file = tmp_path / "chat.json"
    downloaded.value.save_as(file)
    assert json.loads(file.read_text())["kind"] == "manylora.conversation"
    page.get_by_role("button", name="Forget “Remember me <b>”").click()
    page.get_by_text("No chats yet").wait_for()
    page.get_by_label("File with a chat").set_input_files(file)
    page.get_by_role("article", name="You").get_by_text("Remember me <b>").wait_for()
    assert playground.last() == said


def turns_of(**fields: Any) -> str:
    """A file like an export, with one turn."""
    turn = {"id": "a", "content": "", "role": "user", **fields}
    return json.dumps({"kind": "manylora.conversation", "turns": {"a": turn}})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not JSON"),
        ("{}", "no conversation"),
        (turns_of(id="__proto__"), "no id"),
        (turns_of(content=1), "no id"),
        (turns_of(role="system"), "no id"),
        ("[]", "no turns"),
        ('[{"role": "evil", "content": "x"}]', "no turns"),
    ],
)
def test_files_that_are_no_chats(playground: Playground, tmp_path: Path, content: str, fault: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    playground.page.get_by_role("button", name="Chats in this browser").click()
    playground.page.get_by_label("File with a chat").set_input_files(file)
    playground.page.get_by_text(fault).wait_for()


def test_a_chat_that_was_tampered_with(playground: Playground, tmp_path: Path) -> None:
    answer = {"tokens": [{"text": HOSTILE}], "first": "x"}
    turn = {"content": HOSTILE, "role": "assistant", "asked": HOSTILE, "answer": answer}
    turns = {"a": {**turn, "id": "a", "parent": "b"}, "b": {**turn, "id": "b", "parent": "a"}}
    settings = {"temperature": HOSTILE, "stop": [1, HOSTILE], "format": HOSTILE}
    told = {"kind": "manylora.conversation", "turns": turns, "leaf": "a", "model": HOSTILE}
    file = tmp_path / "chat.json"
    file.write_text(json.dumps({**told, "settings": settings}))
    playground.page.get_by_role("button", name="Chats in this browser").click()
    playground.page.get_by_label("File with a chat").set_input_files(file)
    playground.page.locator(".turn.assistant").first.wait_for()
    check_harmless(playground.page)
