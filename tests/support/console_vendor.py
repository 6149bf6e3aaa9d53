"""Fetch the libraries that the console carries, from the npm registry: ``make console-vendor``.

What is pinned stands in ``server/console/static/vendor/vendor.json``. A file is taken as it is in the package
but for three things: the names by which libraries import one another become relative, scripts get a line that
makes modules of them, and links to source maps go. The SHA-256 of what comes out is written beside its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.support.paths import ROOT

VENDOR: Final = ROOT / "server" / "console" / "static" / "vendor"
PINNED: Final = VENDOR / "vendor.json"

_LAST_LINES: Final = {
    "uplot.mjs": "export default uPlot;\n",
    "purify.mjs": "export default globalThis.DOMPurify;\n",
}
_RELATIVE: Final = {'from"preact"': 'from"./preact.mjs"'}


def main() -> None:
    """Bring every file to what the pins say, and write down what they are."""
    pinned: dict[str, Any] = json.loads(PINNED.read_text())
    for library in pinned["libraries"]:
        with tempfile.TemporaryDirectory() as folder:
            _fetch(library, Path(folder))
    PINNED.write_text(json.dumps(pinned, indent=2) + "\n")


def _fetch(library: dict[str, Any], folder: Path) -> None:
    wanted = f"{library['name']}@{library['version']}"
    done = subprocess.run(
        ["npm", "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True, check=True
    )
    archive = folder / done.stdout.split()[-1]
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if library.setdefault("integrity", f"sha512-{digest}") != f"sha512-{digest}":
        raise SystemExit(f"{wanted} is not what was pinned")
    with tarfile.open(archive) as packed:
        for file in [*library["files"], library["licence_file"]]:
            member = packed.extractfile(f"package/{file['from']}")
            assert member is not None
            content = _module(file["name"], member.read().decode())
            (VENDOR / file["name"]).write_text(content)
            file["sha256"] = hashlib.sha256(content.encode()).hexdigest()


def _module(name: str, source: str) -> str:
    lines = [line for line in source.splitlines() if not line.startswith("//# sourceMappingURL")]
    text = "\n".join(lines) + "\n" + _LAST_LINES.get(name, "")
    for bare, relative in _RELATIVE.items():
        text = text.replace(bare, relative)
    return text


if __name__ == "__main__":
    main()
