"""Comparing with the real model: what docs/compare.md prints."""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.real


def test_the_base_twice_and_an_adapter(server: str) -> None:
    body = {
        "targets": ["smollm2-135m", "smollm2-135m", "pirate"],
        "messages": [{"role": "user", "content": "How do I keep bread fresh?"}],
        "max_tokens": 24,
    }
    result = httpx.post(f"http://127.0.0.1:{server}/v1/compare", json=body, timeout=60).json()
    _, same, pirate = result["summary"]
    assert same["max_kl"] == same["max_js"] == same["largest_logit_difference"] == 0
    assert same["level"] == "equal up to rounding"
    assert pirate["mean_kl"] > 1
    assert pirate["level"] == result["verdict"]["level"] == "different"
