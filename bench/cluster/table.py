"""The study as a table for docs/many-machines.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a size; hit rate and 99th percentile of the first token of each policy."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lines = ["| replicas | " + " | ".join(policies) + " |", "|---|" + "---|" * len(policies)]
    for size in dict.fromkeys(row["replicas"] for row in rows):
        found = {row["policy"]: row for row in rows if row["replicas"] == size}
        cells = (f"{found[p]['hit_rate']:.0%}, {found[p]['first_token_p99']:.2f} s" for p in policies)
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
