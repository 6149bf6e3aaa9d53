"""The console's playground, by what people do there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.support.browser import body_of

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Route

CHATS = "**/v1/chat/completions"


class Playground:
    """The playground of an open page, by what people do there."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sent: list[dict[str, Any]] = []
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            self.sent.append(body_of(request))

    def pick(self, model: str) -> None:
        field = self.page.get_by_role("combobox", name="Model", exact=True)
        field.fill(model)
        field.press("Enter")

    def ask(self, text: str, *, until_end: bool = True) -> None:
        field = self.page.get_by_label("Your message")
        field.fill(text)
        field.press("Enter")
        if until_end:
            self.wait()

    def wait(self) -> None:
        """Until the answer is complete."""
        self.page.locator(".turn.assistant .turn-foot").last.wait_for()
        self.page.get_by_role("button", name="Send").wait_for()

    def last(self) -> str:
        return self.page.locator(".turn.assistant").last.inner_text()

    def tokens(self) -> list[str]:
        return [
            each.text_content() or ""
            for each in self.page.locator(".turn.assistant").last.locator(".token").all()
        ]


def set_length(page: Page, tokens: int) -> None:
    page.get_by_role("tab", name="Sampling").click()
    field = page.get_by_label("Longest answer, as a number")
    field.fill(str(tokens))
    field.press("Enter")
    page.get_by_role("tab", name="Model", exact=True).click()


def never_ending(page: Page) -> None:
    """Answers of the tiny model end by chance; these go on to their longest length."""

    def changed(route: Route) -> None:
        body = {**body_of(route.request), "ignore_eos": True}
        route.continue_(post_data=json.dumps(body))

    page.route(CHATS, changed)


def answered_with(page: Page, text: str) -> None:
    """Every chat is answered with a text that no tiny model would say."""
    head = {"id": "chatcmpl-1", "model": "tiny", "usage": None}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
        for piece in re.findall(r".{1,7}", text, re.DOTALL)
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHATS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
