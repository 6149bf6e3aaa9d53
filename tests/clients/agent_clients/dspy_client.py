"""DSPy: a prediction whose fields are held to a schema. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Literal

import dspy


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    for model in models:
        lm = dspy.LM(
            f"openai/{model}", api_base=url, api_key="none", max_tokens=700, temperature=0, cache=False
        )
        assert lm("Hello")[0]
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            fields = {
                "text": (str, dspy.InputField()),
                "mood": (Literal["good", "bad"], dspy.OutputField()),
            }
            sort = dspy.Predict(dspy.Signature(fields))
            assert sort(text="It rains").mood in ("good", "bad")


if __name__ == "__main__":
    main(*sys.argv[1:])
