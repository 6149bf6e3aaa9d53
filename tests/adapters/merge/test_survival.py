"""How much of an adapter's change the rounding of merged weights leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.merge.export import Exported, export
from manylora.adapters.merge.export_plan import plan_export
from manylora.adapters.merge.recipe import Member
from manylora.adapters.merge.survival import Survival, weak_warning
from manylora.server.cli.merge import export_table
from tests.support.adapters import write_adapter
from tests.support.members import LIMITS
from tests.support.tiny_models import tiny_model


def share(base: torch.Tensor, change: torch.Tensor, dtype: torch.dtype) -> float:
    survival = Survival()
    survival.add(base, base.float() + change, (base.float() + change).to(dtype))
    return survival.share


def test_by_hand() -> None:
    """1 in bfloat16 is followed by 1 + 2^-7: half of that and less is rounded away."""
    ones, step = torch.ones(600, 3).bfloat16(), 2.0**-7
    for change, left in ((4 * step, 1.0), (step, 1.0), (0.6 * step, 1 / 0.6), (0.4 * step, 0.0)):
        found = share(ones, torch.full((600, 3), change), torch.bfloat16)
        assert found == pytest.approx(left, rel=1e-4), change
    mixed = torch.full((600, 3), 0.4 * step)
    mixed[:, 0] = 2 * step  # 4 of the 4.32 squares
    assert share(ones, mixed, torch.bfloat16) == pytest.approx(4 / 4.32, rel=1e-4)
    assert share(ones, torch.zeros(600, 3), torch.bfloat16) == 1.0


def test_what_the_base_loses_is_not_counted() -> None:
    """A base in float32 is rounded with and without the adapter; at random that keeps weak changes."""
    generator = torch.Generator().manual_seed(0)
    base, change = (torch.randn(500, 400, generator=generator) for _ in range(2))
    assert share(base, 1e-4 * change, torch.bfloat16) == pytest.approx(1, abs=0.2)
    assert share(base, 1e-4 * change, torch.float32) == pytest.approx(1, abs=1e-3)
    assert share(base.bfloat16(), 1e-4 * change, torch.bfloat16) < 0.1


@pytest.mark.parametrize("weight", [1.0, 1e-2, 1e-4, 1e-6])
def test_of_an_export(tmp_path: Path, weight: float) -> None:
    directory = tiny_model(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    stored = StoredModel(directory)
    adapter = write_adapter(tmp_path / "adapter", directory, scale=0.3)
    member = Member("a", read_artifact(adapter, stored.describe("base"), LIMITS), weight)

    def exported(name: str, dtype: torch.dtype | None) -> Exported:
        return export(plan_export(stored, "base", [member], dtype), tmp_path / name, compute_dtype=None)

    kept, whole = exported("kept", None), exported("fp32", torch.float32)
    assert whole.effect_kept == pytest.approx(1.0, abs=0.05)
    assert weak_warning(whole.effect_kept) is None
    warning = weak_warning(kept.effect_kept)
    assert (warning is None) == (weight == 1.0 or kept.effect_kept >= 0.9)
    if weight < 1e-3:
        assert kept.effect_kept < 0.5
        assert "--dtype fp32" in str(warning)
    shown = f"{kept.effect_kept:.1%}"
    assert shown in (tmp_path / "kept" / "README.md").read_text()
    assert any(shown in str(cell) for cell in export_table(kept).columns[1].cells)
