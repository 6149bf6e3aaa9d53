"""Bodies for the routes that run a model or name one, as tests of tenants ask them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.tenants import chat

LONG = [{"role": "user", "content": "The same long words again and again " * 12}]

# Every route that names a model, with a body that is right but for the name.
NAMING: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": lambda model: {"model": model, "prompt": "Hello", "max_tokens": 1},
    "/v1/responses": lambda model: {"model": model, "input": "Hello", "max_output_tokens": 1},
    "/v1/responses/input_tokens": lambda model: {"model": model, "input": "Hello"},
    "/v1/messages": lambda model: {**chat(model), "max_tokens": 1},
    "/v1/messages/count_tokens": lambda model: {"model": model, "messages": LONG},
    "/v1/embeddings": lambda model: {"model": model, "input": "Hello"},
    "/v1/score": lambda model: {"model": model, "text_1": "Hello", "text_2": "you"},
    "/v1/rerank": lambda model: {"model": model, "query": "Hello", "documents": ["you"]},
    "/classify": lambda model: {"model": model, "input": "Hello"},
    "/tokenize": lambda model: {"model": model, "prompt": "Hello"},
    "/detokenize": lambda model: {"model": model, "tokens": [1]},
    "/v1/compare": lambda model: {"targets": ["beta", model], "prompt": ["Hello"], "max_tokens": 1},
}

# Every route that runs the model, asked for so many tokens or texts.
ASKING: Mapping[str, Callable[[int], Mapping[str, Any]]] = {
    "/v1/chat/completions": lambda n: chat("tiny", max_tokens=n),
    "/v1/completions": lambda n: {"model": "tiny", "prompt": ["Hello", "you"], "max_tokens": n, "n": 2},
    "/v1/responses": lambda n: {"model": "tiny", "input": "Hello", "max_output_tokens": n},
    "/v1/messages": lambda n: {**chat("tiny"), "max_tokens": n},
    "/v1/embeddings": lambda n: {"model": "tiny", "input": ["Hello"] * n},
    "/v1/score": lambda n: {"model": "tiny", "text_1": "Hello", "text_2": ["you"] * n},
    "/v1/rerank": lambda n: {"model": "tiny", "query": "Hello", "documents": ["you"] * n},
    "/v1/compare": lambda n: {"targets": ["tiny", "alpha"], "prompt": ["Hello"], "max_tokens": n},
}
