"""The benchmark of kinds: every kind of the table is measured beside LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kinds import Bench, Row, measure
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES


@pytest.mark.slow
def test_every_kind_is_measured(tiny_llama: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_llama, batch=2, context=20, memory=32 << 20)
    rows = list(measure(bench, list(KINDS_OF_UPDATES), 1, tmp_path))
    found = [row for row in rows if isinstance(row, Row)]
    assert len(found) > len(rows) // 2, rows
    assert all(row.trained > 0 and row.base_us_per_token > 0 and row.lora_rank > 0 for row in found)
    assert bench.pool.used_bytes == 0
