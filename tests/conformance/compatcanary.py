"""compatcanary's probes of chats and the Responses API, each against a random model as it is served."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from tests.conformance.suite import Result, served_model, unexpected
from tests.support.running_server import serving

EXPECTED: Final[dict[str, str]] = {}  # none fails
PROBES: Final = 7  # of version 0.2.2


def wrong(node_folder: str) -> list[str]:
    """The results that were not expected, by the package in the folder's node_modules."""
    script = Path(node_folder) / "node_modules" / "compatcanary" / "src" / "cli.js"
    with served_model() as service, serving(service) as server:
        command = ["node", str(script), "scan", "--base-url", f"{server.url}/v1", "--model", "tiny"]
        command += ["--api-key", "none", "--format", "json", "--fail-on", "never", "--timeout", "120"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        server.wait_until_idle()
    try:
        report = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        raise SystemExit(f"compatcanary could not be run:\n{done.stdout}\n{done.stderr}") from None
    results = [Result(each["id"], each["status"] == "pass", each["summary"]) for each in report]
    missing = [] if len(results) == PROBES else [f"{len(results)} probes were run, not {PROBES}"]
    return [f"compatcanary: {told}" for told in [*missing, *unexpected(results, EXPECTED)]]
