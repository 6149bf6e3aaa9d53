"""LiteLLM: chats, streams, a tool, a schema, an error. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import json
import sys

import litellm

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    server = {"api_base": url, "api_key": "none"}
    for model in models:
        message = {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": None}]}
        asked = {"model": f"hosted_vllm/{model}", "messages": [message], **server}
        answer = litellm.completion(**asked, max_tokens=8)
        assert answer.choices[0].message.content
        chunks = list(
            litellm.completion(**asked, max_tokens=8, stream=True, stream_options={"include_usage": True})
        )
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
        form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
        shaped = litellm.completion(**asked, max_tokens=3000, temperature=0, response_format=form)
        assert json.loads(shaped.choices[0].message.content)["city"] in ("Oslo", "Rome")
        tool = {"type": "function", "function": {"name": "trip", "parameters": SCHEMA, "strict": True}}
        called = litellm.completion(
            **asked, max_tokens=3000, temperature=0, tools=[tool], tool_choice="required"
        )
        (call, *_) = called.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
        anthropic = {**asked, "model": f"anthropic/{model}", "api_base": url.removesuffix("/v1")}
        assert litellm.completion(**anthropic, max_tokens=8).choices[0].message.content
        chunks = list(litellm.completion(**anthropic, max_tokens=8, stream=True))
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
        called = litellm.completion(**anthropic, max_tokens=1000, tools=[tool], tool_choice="required")
        assert called.choices[0].message.tool_calls[0].function.name == "trip"
        assert litellm.embedding(model=f"hosted_vllm/{model}", input=["a"], **server).data
    try:
        litellm.completion(model="hosted_vllm/nobody", messages=[message], **server)
        raised = None
    except litellm.NotFoundError as error:
        raised = error
    assert raised is not None
    assert "nobody" in str(raised)
    names = litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai", **server)
    assert any(name.endswith(models[0]) for name in names), names


if __name__ == "__main__":
    main(*sys.argv[1:])
