"""The benchmark of tenants runs to its end, and measures what it says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import bench.tenants as bench_module
from bench.tenants import ADMIN, WEIGHTS, measure, stop
from tests.support.running_server import serving, tiny_service


@pytest.mark.sweep
def test_everything_is_measured(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STREAMS", 4), ("ANSWER", 4), ("WAITS", 3)):
        monkeypatch.setattr(bench_module, name, value)
    options = {"served_model_name": "base", "admin_api_key": [ADMIN], "max_num_seqs": 4, "max_waiting": 200}
    plain = tiny_service(tiny_llama, tmp_path / "plain", scheduling="fcfs", **options)
    fair = tiny_service(tiny_llama, tmp_path / "fair", **options)
    with serving(plain) as one, serving(fair) as other:
        told = asyncio.run(measure(one.url, other.url, rounds=1, repeats=1, seconds=1.0))
    assert set(told["shares_by_weight"]) == set(WEIGHTS)
    assert all(share > 0 for share in told["shares_by_weight"].values())
    assert told["ratio"] > 0
    assert 0 < told["first_token_p50_alone"] <= told["first_token_p99_alone"]
    assert 0 < told["first_token_p50_beside_a_flood"] <= told["first_token_p99_beside_a_flood"]


async def test_a_flood_that_has_failed_is_no_measurement() -> None:
    async def fail() -> None:
        raise OSError("gone")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="gone"):
        await stop(tasks)
    assert tasks[1].cancelled()
