"""One exposition of metrics made of those of all replicas: each sample says whose it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

_HEAD = re.compile(r"# (?:HELP|TYPE) ([A-Za-z_:][A-Za-z0-9_:]*) ")
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(\{(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*\})? ")
_ENDINGS = ("_bucket", "_sum", "_count", "_total", "_created", "_info")


def merge_expositions(texts: Mapping[str, str], label: str = "replica") -> str:
    """The samples of every replica, with its name as ``label``, those of one family together.

    Args:
        texts: the text format of Prometheus, by replica.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        own = f'{label}="{_escaped(replica)}"'
        family = ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                family = head[1]
                lines = heads.setdefault(family, [])
                if line not in lines and len(lines) < 2:
                    lines.append(line)
            elif found := _SAMPLE.match(line):
                place = family if _belongs(found[1], family) else found[1]
                samples.setdefault(place, []).append(_labelled(line, found, own))
    families = dict.fromkeys([*heads, *samples])
    lines = [line for family in families for line in (*heads.get(family, ()), *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)


def _belongs(name: str, family: str) -> bool:
    """Whether a sample is one of the family whose lines are being read."""
    return name == family or any(name == family + ending for ending in _ENDINGS)


def _labelled(line: str, found: re.Match[str], own: str) -> str:
    labels, rest = found[2], line[found.end() :]
    inside = "" if labels is None else labels[1:-1].rstrip(", ")
    return f"{found[1]}{{{own}{',' if inside else ''}{inside}}} {rest}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
