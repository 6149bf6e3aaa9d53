"""The benchmark of grammars on a tiny model: every share of rows is run and told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.grammars import SHARES, Batches, compiled, figures
from manylora.server.assembly import build_service
from manylora.server.options.settings import Settings


@pytest.mark.slow
def test_every_share_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    settings = Settings(
        model=str(tiny_llama),
        kernels="pytorch",
        data_dir=tmp_path,
        adapter_memory=1 << 20,
        kv_cache_memory=16 << 20,
    )
    service = build_service(settings, tiny_llama)
    grammars, times = asyncio.run(compiled(service))
    assert len(times) == len(grammars)
    batches = Batches(service, grammars, rows=4, tokens=20)
    for share in SHARES:
        batches.run(share)
    asyncio.run(service.stop())
    found = figures(batches.between, 4)
    assert list(found) == ["0%", "25%", "75%", "100%"]
    assert found["0%"]["throughput_ratio"] == 1
    assert all(0 < each["median_ms"] <= each["p99_ms"] for each in found.values())
