"""The benchmark of the time between two steps: in process and in a server, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import sleep

import pytest

from bench.between_calls import by_hand, in_server, with_service
from manylora.server.engine.answer_reader import Outcome
from manylora.server.service import Service

STREAMS, TOKENS = 4, 30

Measure = Callable[[Service], Mapping[str, float]]


def begun_together(service: Service) -> Mapping[str, float]:
    """In a server whose engine begins when all streams are there, however a loaded machine staggers them."""
    engine = service.core
    advance = engine.advance

    def wait_for_all() -> list[Outcome]:
        if not engine.scheduler.running and len(engine.scheduler.waiting) < STREAMS:
            sleep(0.001)  # the others are on their way
            return []
        return advance()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "advance", wait_for_all)
        return in_server(STREAMS, TOKENS)(service)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "rounds"),
    [(partial(by_hand, streams=STREAMS, tokens=TOKENS), 1), (begun_together, 2)],  # one of them warms up
    ids=["by hand", "served"],
)
def test_steps_of_all_streams_count(tiny_llama: Path, measure: Measure, rounds: int) -> None:
    """Nearly all of them do: prompts that share no step let the streams begin a few steps apart."""
    found = with_service(tiny_llama, measure)
    assert rounds * (TOKENS - 6) <= found["steps"] < rounds * TOKENS
    assert 0 < found["step_ms"] < 1000
    assert 0 < found["between_ms"] <= found["between_p90_ms"]
