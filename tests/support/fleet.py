"""What a server says of its adapters, and adapters that are given to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.running_server import Running


def told(server: Running, path: str) -> Any:
    with server.http() as http:
        answer = http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def publish(server: Running, name: str, directory: Path) -> str:
    """Serve what lies in a directory; the revision."""
    with server.http() as http:
        answer = http.put(f"/v1/adapters/{name}?wait=true", json={"source": str(directory)})
    assert answer.status_code in {200, 201}, answer.text
    revision: str = answer.json()["revision"]
    return revision
