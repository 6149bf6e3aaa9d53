"""The benchmark of the time between two steps: in process and in a server, on a tiny model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from bench.between_calls import by_hand, in_server, with_service


@pytest.mark.slow
@pytest.mark.parametrize("served", [False, True])
def test_steps_of_all_streams_count(tiny_llama: Path, served: bool) -> None:
    measure = in_server(4, 30) if served else partial(by_hand, streams=4, tokens=30)
    found = with_service(tiny_llama, measure)
    assert 20 <= found["steps"] <= 60
    assert 0 < found["step_ms"] < 1000
    assert 0 < found["between_ms"] <= found["between_p90_ms"]
