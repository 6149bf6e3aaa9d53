"""The section of ``docs/api.md`` that prints the table of fields; run as a module it is rewritten."""

from __future__ import annotations

from manylora.server.api.request.fields.reference import tables
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "api.md"
BEGIN, END = "<!-- fields -->", "<!-- /fields -->"


def section() -> str:
    """What the page says now."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def rewrite() -> None:
    """Put what the code says into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")


if __name__ == "__main__":
    rewrite()
