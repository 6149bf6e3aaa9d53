"""Simon Willison's llm: a prompt, a stream, a schema, a tool. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import llm


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLM_USER_PATH"] = home
        entries = [
            {"model_id": f"served-{index}", "model_name": model, "api_base": url, "supports_tools": True,
             "supports_schema": True}
            for index, model in enumerate(models)
        ]  # fmt: skip
        Path(home, "extra-openai-models.yaml").write_text(json.dumps(entries))
        for entry in entries:
            model = llm.get_model(entry["model_id"])
            model.key = "none"
            assert model.prompt("Hello", max_tokens=8, stream=False).text()
            assert "".join(model.prompt("Hello", max_tokens=8))
            schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"],
                      "additionalProperties": False}  # fmt: skip
            answer = model.prompt("Is it wet?", schema=schema, max_tokens=3000, temperature=0, stream=False)
            assert isinstance(json.loads(answer.text())["wet"], bool)


if __name__ == "__main__":
    main(*sys.argv[1:])
