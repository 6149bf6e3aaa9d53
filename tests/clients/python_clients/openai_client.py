"""The official Python client: a chat, a stream, the models. Arguments: the base URL and a model."""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, model: str) -> None:
    """Ask the server at ``url``."""
    client = OpenAI(base_url=url, api_key="none")
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        max_completion_tokens=8,
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.annotations == []
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        max_completion_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].usage is not None
    assert model in [each.id for each in client.models.list()]


if __name__ == "__main__":
    main(*sys.argv[1:])
