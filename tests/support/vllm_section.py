"""The section of ``docs/vllm.md`` that lists vLLM's options; run as a module it is rewritten."""

from __future__ import annotations

from manylora.server.cli.vllm.arguments import IGNORED, ONLY, SERVED
from tests.support.paths import DOCS

PAGE = DOCS / "vllm.md"
BEGIN, END = "<!-- options -->", "<!-- /options -->"


def section() -> str:
    """What the page says now."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def table() -> str:
    """What the code says."""
    served = ", ".join(f"`--{name}`" for name in sorted(SERVED))
    lines = ["**Served**: " + served + ".", "", "| taken with these values only | |", "|---|---|"]
    lines += [f"| `--{name}` | {', '.join(f'`{value}`' for value in ONLY[name])} |" for name in sorted(ONLY)]
    lines += ["", "| ignored | why |", "|---|---|"]
    lines += [f"| `--{name}` | {IGNORED[name]} |" for name in sorted(IGNORED)]
    return "\n".join(lines)


def rewrite() -> None:
    """Put what the code says into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    rewrite()
