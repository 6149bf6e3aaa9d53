"""A length that nobody asked for is never the reason to refuse a prompt; one that was asked for is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.running_server import Running

CONTEXT = 2048
WHOLE = {"temperature": 0, "ignore_eos": True}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", **WHOLE},
    "/v1/compare": {"targets": ["tiny", "tiny"], **WHOLE},
}


def _ask(server: Running, path: str, **fields: Any) -> tuple[int, Any]:
    with server.http() as http:
        answer = http.post(path, json={**ROUTES[path], **fields})
    return answer.status_code, answer.json()


def _length(answer: Any) -> int:
    if "usage" in answer:
        return int(answer["usage"]["completion_tokens"])
    return len(answer["cases"][0]["answers"][0]["token_ids"]) if "cases" in answer else -1


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("left", [1, 2, 15, 16, 17])
def test_what_is_left_is_given(server: Running, path: str, left: int) -> None:
    prompt = [5] * (CONTEXT - left)
    status, answer = _ask(server, path, prompt=prompt)
    assert status == 200, answer
    if path == "/v1/completions":
        assert _length(answer) == min(left, 16)
    status, answer = _ask(server, path, prompt=prompt, max_tokens=left + 1)
    assert (status, answer["error"]["param"]) == (400, "max_tokens")


@pytest.mark.parametrize("path", ROUTES)
def test_a_prompt_that_leaves_nothing_is_too_long(server: Running, path: str) -> None:
    status, answer = _ask(server, path, prompt=[5] * CONTEXT)
    assert (status, answer["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(("path", "default"), [("/v1/completions", 16), ("/v1/compare", 64)])
def test_a_least_length_beyond_the_default(server: Running, path: str, default: int) -> None:
    status, answer = _ask(server, path, prompt=[5], min_tokens=default + 4)
    assert status == 200, answer
    if path == "/v1/completions":
        assert _length(answer) == default + 4
    status, answer = _ask(server, path, prompt=[5] * (CONTEXT - 3), min_tokens=default + 4)
    assert (status, answer["error"]["param"]) == (400, "min_tokens")
