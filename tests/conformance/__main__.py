"""Other people's conformance suites against a real model; run by ``make conformance``.

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

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.base_models.directory import default_data_dir
from tests.support import tool_templates
from tests.support.server_process import server_process

MODEL = "smollm2-135m"
EXPECTED: Final[dict[str, dict[str, str]]] = {
    "open-responses": {"image-input": "images are refused: the models are text models"},
    "openai-chat": {
        "chat-image-input": "images are refused: the models are text models",
        "chat-reasoning-summary": "the field is no field of chats at OpenAI, and the model does not reason",
    },
}


def main(python: str) -> int:
    """Run every suite; the number of results that were not expected."""
    with TemporaryDirectory(prefix="manylora-conformance-") as directory:
        model = _model_with_tools(Path(directory) / "model")
        options = ("--model", str(model), "--served-model-name", MODEL, "--data-dir", f"{directory}/data")
        with server_process(*options) as server:
            wrong = [
                f"{suite}: {told}"
                for suite, expected in EXPECTED.items()
                for told in _unexpected(_results(python, suite, server.url), expected)
            ]
    print(*wrong or ["all as expected"], sep="\n")
    return len(wrong)


def _model_with_tools(directory: Path) -> Path:
    """The real model with a chat template that has a place for tools: its own has none."""
    directory.mkdir()
    for path in resolve_model(MODEL, default_data_dir()).iterdir():
        if path.name != "chat_template.jinja":
            (directory / path.name).symlink_to(path)
    (directory / "chat_template.jinja").write_text(tool_templates.HERMES, encoding="utf-8")
    return directory


def _results(python: str, suite: str, url: str) -> list[dict[str, Any]]:
    command = [python, "-m", "llm_comply.cli", "--format", suite, "--json"]
    command += ["-u", f"{url}/v1", "-m", MODEL, "-k", "none"]
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
