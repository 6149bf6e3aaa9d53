"""The console's files as a server sends them: hashed, compressed, and with headers that bind the browser.

Nothing here knows of routes. All files lie under one folder named by the digest of all of them, so that each
may be cached for ever: a console with other files has another folder, and only its page is asked for anew.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

KINDS: Final[Mapping[str, str]] = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is sent, by the end of its name; nothing else in the folder is."""

PAGE: Final = "index.html"
AT_ONCE: Final = ("core/main.js", "views/playground/view.js")
"""Where the console begins, and the view that it opens with. All that they import is fetched together, so
that no round of requests waits for another; other views come when they are opened."""

_STATIC_IMPORT = re.compile(r"""\bfrom\s*['"](\.[^'"]+)['"]""")

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    kind: str  # the content type
    plain: bytes
    packed: bytes  # the same by gzip
    etag: str  # weak, as it is the same in both encodings; with its quotes


class Console:
    """All files of the console, by their paths under its folder."""

    def __init__(self, folder: Path | None = None) -> None:
        """Reads and compresses them, which takes some hundredths of a second."""
        self._folder = Path(str(files(__package__) / "static")) if folder is None else folder
        self.assets = {name: _asset(path) for name, path in _served(self._folder)}
        digest = hashlib.sha256()
        for name, asset in sorted(self.assets.items()):
            digest.update(f"{name}\0{asset.etag}\0".encode())
        self.version = digest.hexdigest()[:16]
        self._pages = {prefix: self._page(prefix) for prefix in ("", "console/")}

    def page(self, prefix: str) -> Asset:
        """The page, whose links begin with ``prefix``: "console/" where its own path ends without a slash."""
        return self._pages[prefix]

    def _page(self, prefix: str) -> Asset:
        root = f"{prefix}{self.version}"
        needed = dict.fromkeys(name for first in AT_ONCE for name in modules_of(self.assets, first))
        preloads = "\n".join(f'<link rel="modulepreload" href="{root}/{name}">' for name in needed)
        template = (self._folder / PAGE).read_text(encoding="utf-8")
        text = template.replace("{root}", root).replace("{preloads}", preloads)
        return _packed("text/html; charset=utf-8", text.encode())


def modules_of(assets: Mapping[str, Asset], first: str) -> list[str]:
    """A module and all that it imports, directly or not, but what it loads later; none if it is missing."""
    found: dict[str, None] = {}
    waiting = [first] if first in assets else []
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            imported = _STATIC_IMPORT.findall(assets[name].plain.decode())
            waiting += [
                posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in imported
            ]
    return list(found)


def _served(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in KINDS:
            yield path.relative_to(folder).as_posix(), path


def _asset(path: Path) -> Asset:
    return _packed(KINDS[path.suffix], path.read_bytes())


def _packed(kind: str, content: bytes) -> Asset:
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:16]}"'
    return Asset(kind, content, gzip.compress(content, 9, mtime=0), etag)
