"""The server starts on its own merges: every decoder passes the probe on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.merge.export import export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.members import read_members
from manylora.server.model.loading.loader import LoadedModel, decoder_candidates, load_model
from manylora.server.model.loading.probe import PROBE_BLOCKS, PROBE_ROWS, probe, probe_adapters
from manylora.server.model.pages.pool import PagePool
from tests.support.paths import EXAMPLES

pytestmark = [pytest.mark.real, pytest.mark.slow]

ADAPTERS = sorted(path.parent.name for path in (EXAMPLES / "adapters").glob("*/adapter_config.json"))


def load(directory: Path) -> LoadedModel:
    return load_model(directory, dtype="bf16", device="cpu", max_model_len=512)


@pytest.mark.sweep
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_decoder_serves_the_merge(real_model_dir: Path, tmp_path: Path, adapter: str) -> None:
    stored = StoredModel(real_model_dir)
    members = read_members([(EXAMPLES / "adapters" / adapter, 1.0)], stored.describe("base"))
    export(plan_export(stored, "base", members), tmp_path / "merged", compute_dtype=None)
    loaded = load(tmp_path / "merged")
    for decoder in decoder_candidates(loaded):
        pool = PagePool(
            decoder.modules, 64 << 20, loaded.dtype, loaded.device, decoder, tables=decoder.tables
        )
        decoder.allocate(pool.data, PROBE_BLOCKS, PROBE_ROWS)
        assert probe(loaded.hf, decoder, loaded.dtype) < 0.5
        probe_adapters(loaded.hf, decoder, pool, loaded.dtype)
