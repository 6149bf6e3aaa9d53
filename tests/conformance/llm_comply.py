"""llm-comply: what is answered is written here, so that no check hangs on what a model makes of it; all else
is as it is served.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

import pytest

from tests.conformance.suite import Result, served_model, unexpected
from tests.support.scripted import Scripted, scripted

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Oslo"}}\n</tool_call>'
EXPECTED: Final[dict[str, dict[str, str]]] = {
    "open-responses": {"image-input": "images are refused: the models are text models"},
    "openai-chat": {"chat-image-input": "images are refused: the models are text models"},
    "anthropic": {"anth-image-input": "images are refused: the models are text models"},
}


def wrong(python: str) -> list[str]:
    """The results that were not expected, of the suites in the environment of ``python``."""
    with served_model() as service, pytest.MonkeyPatch.context() as patch, scripted(service, patch) as server:
        return [
            f"{suite}: {told}"
            for suite, expected in EXPECTED.items()
            for told in _unexpected(_results(python, suite, server), expected)
        ]


def _results(python: str, suite: str, server: Scripted) -> list[dict[str, Any]]:
    names = [test["id"] for test in _run(python, suite, server, [])]
    calling = [name for name in names if "tool" in name]
    others = [name for name in names if name not in calling]
    server.text, server.tokens = CALL, None
    results = _run(python, suite, server, calling)
    server.text = "Hello there."
    return results + _run(python, suite, server, others)


def _run(python: str, suite: str, server: Scripted, names: list[str]) -> list[dict[str, Any]]:
    """The results of the checks of those names; all if there are none."""
    command = [python, "-m", "llm_comply.cli", "--format", suite, "--json"]
    command += ["-u", f"{server.running.url}/v1", "-m", "tiny", "-k", "none"]
    if names:
        command += ["-f", ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    try:
        results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        raise SystemExit(f"{suite} could not be run:\n{done.stdout}\n{done.stderr}") from None
    return results


def _unexpected(results: list[dict[str, Any]], expected: dict[str, str]) -> list[str]:
    ran = [result for result in results if result["status"] != "skipped"]
    return unexpected([Result(r["id"], r["status"] != "failed", str(r.get("errors"))) for r in ran], expected)
