"""Four streams of the real model while a job trains on the same machine."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from bench.beside_training import STREAMS, Jobs, streams

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.sweep, pytest.mark.timeout(3600)]

BASE = "smollm2-135m"


def test_texts_are_the_same_beside_a_job(server: str) -> None:
    """With --training-share at its default; how much slower they come is the benchmark's to tell."""
    url = f"http://127.0.0.1:{server}"
    expected = dict(asyncio.run(streams(url, BASE, 1.0)).texts)
    assert set(expected) == set(range(STREAMS))
    with httpx.Client(base_url=url, timeout=60) as http:
        jobs = Jobs(http, BASE, 1, 200)
        jobs.wait_for_steps()
        before = jobs.steps()
        found = asyncio.run(streams(url, BASE, 10.0))
        jobs.wait_for_steps(1)
        assert jobs.steps() > before
        jobs.all("cancel")
    assert {index for index, _ in found.texts} == set(range(STREAMS))
    assert [text for index, text in found.texts] == [expected[index] for index, _ in found.texts]
