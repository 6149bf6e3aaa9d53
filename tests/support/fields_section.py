"""The section of ``docs/api.md`` that prints the table of fields; run as a module it is rewritten."""

from __future__ import annotations

from manylora.server.api.request.fields.reference import tables
from tests.support.page_section import PageSection
from tests.support.paths import DOCS

SECTION = PageSection(DOCS / "api.md", "fields")


if __name__ == "__main__":
    SECTION.rewrite(tables())
