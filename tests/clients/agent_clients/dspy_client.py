"""DSPy: a text, an object by schema. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import json
import sys

import dspy

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    for model in models:
        lm = dspy.LM(
            f"openai/{model}", api_base=url, api_key="none", max_tokens=3000, temperature=0, cache=False
        )
        assert lm("Hello")[0]
        form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA, "strict": True}}
        (text,) = lm("It rains", response_format=form)
        assert json.loads(text)["mood"] in ("good", "bad")


if __name__ == "__main__":
    main(*sys.argv[1:])
