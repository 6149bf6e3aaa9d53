"""lm-eval's local-completions: likelihoods and answers. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    for model in models:
        asks = LocalCompletionsAPI(
            base_url=f"{url}/completions", model=model, tokenizer_backend="remote", tokenized_requests=False,
            max_length=512, num_concurrent=1,
        )  # fmt: skip
        pairs = [("The sky is", " blue"), ("The sky is", " grey")]
        scored = asks.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)])
        assert all(likelihood < 0 for likelihood, _ in scored)
        settings = {"until": ["\n"], "max_gen_toks": 8, "temperature": 0}
        (text,) = asks.generate_until([Instance("generate_until", {}, ("The sky is", settings), 0)])
        assert isinstance(text, str)


if __name__ == "__main__":
    main(*sys.argv[1:])
