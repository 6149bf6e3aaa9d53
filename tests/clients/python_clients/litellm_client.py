"""LiteLLM: a chat, a stream, the models. Arguments: the base URL and a model."""

from __future__ import annotations

import sys

import litellm


def main(url: str, model: str) -> None:
    """Ask the server at ``url``."""
    asked = {
        "model": f"hosted_vllm/{model}",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": None}]}],
        "api_base": url,
        "api_key": "none",
        "max_tokens": 8,
    }
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    asked |= {"model": f"anthropic/{model}", "api_base": url.removesuffix("/v1")}
    assert litellm.completion(**asked).choices[0].message.content
    chunks = list(litellm.completion(**asked, stream=True))
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    models = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=url, api_key="none"
    )
    assert any(name.endswith(model) for name in models), models


if __name__ == "__main__":
    main(*sys.argv[1:])
