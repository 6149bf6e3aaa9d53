"""The part of a page in docs that the code writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PageSection:
    """What stands between two comments, ``<!-- name -->`` and ``<!-- /name -->``."""

    page: Path
    name: str

    def text(self) -> str:
        """What is there."""
        return self._parts()[1].strip()

    def rewrite(self, text: str) -> None:
        """Put ``text`` there."""
        before, _, after = self._parts()
        self.page.write_text(f"{before}<!-- {self.name} -->\n\n{text}\n\n<!-- /{self.name} -->{after}")

    def _parts(self) -> tuple[str, str, str]:
        before, rest = self.page.read_text().split(f"<!-- {self.name} -->")
        inside, after = rest.split(f"<!-- /{self.name} -->")
        return before, inside, after
