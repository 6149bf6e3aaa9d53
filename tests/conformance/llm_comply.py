"""Other people's conformance suites; run by ``make conformance``. What is answered is written here, so that
no check hangs on what a model makes of it; all else is as it is served.

Argument: the Python of the environment that has the suites. A check that fails is an error unless it is
listed here with the reason, and so is one that passes in spite of its reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from tests.support import tool_templates
from tests.support.running_server import tiny_service
from tests.support.scripted import Scripted, scripted
from tests.support.tiny_models import byte_tokenizer, tiny_model

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Oslo"}}\n</tool_call>'
EXPECTED: Final[dict[str, dict[str, str]]] = {
    "open-responses": {"image-input": "images are refused: the models are text models"},
    "openai-chat": {"chat-image-input": "images are refused: the models are text models"},
    "anthropic": {"anth-image-input": "images are refused: the models are text models"},
}


def main(python: str) -> int:
    """Run every suite; the number of results that were not expected."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        model = tiny_model(Path(directory) / "model", max_position_embeddings=4096)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = tool_templates.HERMES
        tokenizer.save_pretrained(model)
        service = tiny_service(model, Path(directory) / "data")
        with scripted(service, patch) as server:
            wrong = [
                f"{suite}: {told}"
                for suite, expected in EXPECTED.items()
                for told in _unexpected(_results(python, suite, server), expected)
            ]
    print(*wrong or ["all as expected"], sep="\n")
    return len(wrong)


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
    found = []
    for result in results:
        name, status = result["id"], result["status"]
        reason = f" (expected: {expected[name]})" if name in expected else ""
        print(f"{name:<32} {status}{reason}", flush=True)
        if (status == "failed") != (name in expected) and status != "skipped":
            found.append(f"{name} {status}: {result.get('errors')}")
    return found


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
