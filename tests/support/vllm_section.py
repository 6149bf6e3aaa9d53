"""The section of ``docs/vllm.md`` that lists vLLM's options; run as a module it is rewritten."""

from __future__ import annotations

from manylora.server.cli.vllm.arguments import IGNORED, ONLY, SERVED
from tests.support.page_section import PageSection
from tests.support.paths import DOCS

SECTION = PageSection(DOCS / "vllm.md", "options")


def table() -> str:
    """What the code says."""
    served = ", ".join(f"`--{name}`" for name in sorted(SERVED))
    lines = ["**Served**: " + served + ".", "", "| taken with these values only | |", "|---|---|"]
    lines += [f"| `--{name}` | {', '.join(f'`{value}`' for value in ONLY[name])} |" for name in sorted(ONLY)]
    lines += ["", "| ignored | why |", "|---|---|"]
    lines += [f"| `--{name}` | {IGNORED[name]} |" for name in sorted(IGNORED)]
    return "\n".join(lines)


if __name__ == "__main__":
    SECTION.rewrite(table())
