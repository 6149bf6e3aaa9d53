"""Results as one line of JSON, and as files that are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manylora.server.cli.loadgen.figures import Figures


def json_line(bench: str, setting: dict[str, Any], rows: Sequence[Figures]) -> str:
    """The whole result as one line."""
    rounded = ({key: _rounded(value) for key, value in asdict(row).items()} for row in rows)
    return json.dumps({"bench": bench, **setting, "rows": list(rounded)}, separators=(",", ":"))


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


def save(line: str, directory: Path, name: str) -> Path:
    """Keep the result as ``directory/name.json``, indented."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(json.loads(line), indent=1) + "\n")
    return path
