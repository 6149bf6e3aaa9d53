"""The benchmark of streams beside a job: what it tells, and that it runs to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench.beside_training as bench_module
from bench.beside_training import Seen, figures, measure
from bench.tenants import ADMIN
from tests.support.running_server import serving, tiny_service


def test_figures() -> None:
    alone = [Seen([0.1, 0.2], [0.01] * 99, [(0, "a"), (1, "b"), (0, "a")]), Seen([0.3], [0.01], [(1, "b")])]
    beside = [Seen([0.4] * 3, [0.02] * 98 + [0.05] * 2, [(0, "a"), (1, "c")])]
    told = figures(alone, beside)
    assert (told["answers"], told["answers_that_differ"]) == (6, 1)
    assert (told["first_p50_ms_alone"], told["first_p50_ms_beside"], told["first_p50_ratio"]) == (200, 400, 2)
    assert (told["between_p50_ratio"], told["between_p99_ratio"]) == (2, 5)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_a_tiny_server_is_measured(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are the same beside a job, which gets on."""
    monkeypatch.setattr(bench_module, "HALT_SECONDS", 3.0)
    monkeypatch.setattr(bench_module, "ANSWER", 16)
    options = {"served_model_name": "base", "admin_api_key": [ADMIN], "training": "local"}
    with serving(tiny_service(tiny_llama, tmp_path, **options)) as running:
        told = measure(running.url, "base", jobs=2, turns=1, seconds=4.0, rows=200)
    assert told["answers"] >= 8
    assert told["answers_that_differ"] == 0
    assert told["steps_beside"] > 0
    assert told["between_p99_ratio"] > 0
