"""LiteLLM's proxy before the server, asked by OpenAI's client as if it were OpenAI.

Arguments: the base URL, a model and a mix. The proxy's configuration names no adapter: a wildcard passes on
whatever is asked for, and one name of its own stands for the mix.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import httpx
from openai import BadRequestError, NotFoundError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

KEY = "sk-proxy"  # the proxy's, not the server's
ASSISTANT = "assistant"
PATIENCE = 120.0  # seconds until the proxy answers


class Trip(BaseModel):
    """A journey."""

    city: Literal["Oslo", "Rome"]
    by_train: bool


def main(url: str, model: str, mix: str) -> None:
    """Ask the server at ``url`` through the proxy."""
    with TemporaryDirectory() as directory, proxy(Path(directory), url, mix) as proxied:
        client = OpenAI(base_url=proxied, api_key=KEY, max_retries=0)
        for name in (model, mix, ASSISTANT):
            chats(client, name)
            shapes(client, name)
        assert client.embeddings.create(model=model, input=["a", "b"]).data[1].embedding
        errors(client, model)


@contextmanager
def proxy(directory: Path, url: str, mix: str) -> Iterator[str]:
    """A running proxy before the server at ``url``; its own base URL."""
    server = {"api_base": url, "api_key": "none"}
    models = [
        {"model_name": name, "litellm_params": {"model": f"hosted_vllm/{asked}", **server}}
        for name, asked in (("*", "*"), (ASSISTANT, mix))
    ]
    settings = {"telemetry": False, "num_retries": 0, "request_timeout": 60}
    config = directory / "config.yaml"
    config.write_text(json.dumps({"model_list": models, "litellm_settings": settings,
                                  "general_settings": {"master_key": KEY}}))  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("litellm")
    command = [program, "--config", config, "--host", "127.0.0.1", "--port", str(port)]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    with (directory / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | offline, cwd=directory)
        try:
            _wait(f"http://127.0.0.1:{port}/health/liveliness", process)
            yield f"http://127.0.0.1:{port}/v1"
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, "the proxy ended"
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError("the proxy does not answer")


def chats(client: OpenAI, model: str) -> None:
    """A chat, whole and streamed."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8,
             "temperature": 0}  # fmt: skip
    answer = client.chat.completions.create(**asked)
    said = answer.choices[0].message.content
    assert said
    assert answer.usage.completion_tokens == 8
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert any(chunk.usage is not None and chunk.usage.completion_tokens == 8 for chunk in chunks)


def shapes(client: OpenAI, model: str) -> None:
    """A schema and a tool, whole and streamed."""
    asked = {"model": model, "messages": [{"role": "user", "content": "Where to?"}], "temperature": 0,
             "max_tokens": 3000}  # fmt: skip
    parsed = client.chat.completions.parse(**asked, response_format=Trip).choices[0].message.parsed
    assert isinstance(parsed, Trip)
    tools = [pydantic_function_tool(Trip)]
    called = client.chat.completions.parse(**asked, tools=tools, tool_choice="required").choices[0]
    assert called.finish_reason == "tool_calls"
    (call, *_) = called.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Trip)
    with client.chat.completions.stream(**asked, tools=tools, tool_choice="required") as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls[0].function.arguments == call.function.arguments


def errors(client: OpenAI, model: str) -> None:
    """What the server refuses is refused by the proxy, with what the server says of it."""
    for kind, told, body in ((NotFoundError, "nobody", {"model": "nobody"}),
                             (BadRequestError, "temperature", {"temperature": 9})):  # fmt: skip
        try:
            client.chat.completions.create(
                **{"model": model, "messages": [{"role": "user", "content": "Hi"}], **body}
            )
            raised = None
        except kind as error:
            raised = error
        assert raised is not None
        assert told in str(raised), raised


if __name__ == "__main__":
    main(*sys.argv[1:])
