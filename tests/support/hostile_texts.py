"""What users, models and adapters might write to make a page do something."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTILE = (
    "<img src=x onerror=alert(1)> <script>alert(2)</script> <svg onload=alert(3)> [a](javascript:alert(4)) "
    "[b](JaVaScRiPt:alert(5)) [c](data:text/html,<script>alert(6)</script>) ![d](http://203.0.113.1/x.png) "
    '<a href="vbscript:x" onclick="alert(7)">e</a> <iframe src="//203.0.113.1"></iframe> '
    "<style>*{display:none}</style> <form action=//203.0.113.1><input name=q></form> "
    "[f](https://example.org/) **bold**"
)


def check_harmless(page: Page) -> None:
    """The text is shown as formatted text, and nothing of it acts."""
    page.locator(".markdown strong", has_text="bold").first.wait_for()
    assert page.locator("main :is(img, script, iframe, style, form, input[name=q])").count() == 0
    links = page.locator("main .markdown a[href]").evaluate_all("links => links.map((link) => link.href)")
    assert set(links) == {"https://example.org/", "http://203.0.113.1/x.png"}
    handlers = page.evaluate(
        "[...document.querySelectorAll('main *')].flatMap((each) => [...each.attributes])"
        ".filter((attribute) => attribute.name.startsWith('on')).length"
    )
    assert handlers == 0
