"""The sizes of a part of a base, as they are computed, are those of what a rank loads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manylora.adapters.base_models.checkpoint import Checkpoint
from manylora.adapters.base_models.configuration import plain_config
from manylora.server.errors import ConfigError
from manylora.server.model.pages.packed_file import Packing
from manylora.server.model.parallel.parts.loading import load_share
from manylora.server.model.parallel.parts.shape import share_shape
from manylora.server.model.parallel.preparing import divide_ranks
from manylora.server.model.parallel.setup import RankSetup
from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings
from tests.support.tiny_models import tiny_model


def setup_of(directory: Path, rank: int, count: int) -> RankSetup:
    """One rank's part on a CPU."""
    return RankSetup(
        directory=directory,
        rank=rank,
        count=count,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_model_len=None,
        kernels="pytorch",
        coded_cache=False,
        backend="gloo",
        meeting=Path(),
        threads=1,
        log_level="WARNING",
    )


def test_packed_files_are_of_so_many_ranks() -> None:
    """A revision's packed form of one server is none for a server of another number."""
    keys = [Packing.of([], "weights", torch.float32, ranks) for ranks in (1, 2, 4)]
    assert keys[0] == Packing.of([], "weights", torch.float32)
    assert len({packing.key for packing in keys}) == len({packing.file_name for packing in keys}) == 3


@pytest.mark.parametrize("family", ["llama", "llama-untied-bias", "phi3", "gemma2"])
def test_a_rank_loads_what_was_computed(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And reads no more of the files: of matrices only parts, and of each its own."""
    model = tiny_model(tmp_path, family)
    read = []
    part, whole = Checkpoint.part, Checkpoint.__getitem__

    def counted_part(self: Checkpoint, name: str, rows: range | None, columns: range | None) -> torch.Tensor:
        found = part(self, name, rows, columns)
        read.append(found.numel())
        return found

    def counted(self: Checkpoint, name: str) -> torch.Tensor:
        found = whole(self, name)
        assert found.dim() == 1 or "embed" in name, f"all of {name} is read"
        read.append(found.numel())
        return found

    monkeypatch.setattr(Checkpoint, "part", counted_part)
    monkeypatch.setattr(Checkpoint, "__getitem__", counted)
    shape = share_shape(plain_config(model), 2)
    for rank in range(2):
        read.clear()
        share = load_share(setup_of(model, rank, 2))
        held = {id(p): p.numel() for p in share.hf.parameters()}
        if shape.kv_heads != shape.heads and plain_config(model).tie_word_embeddings:
            held = {id(p): p.numel() for n, p in share.hf.named_parameters() if n != "lm_head.weight"}
        assert sum(held.values()) == shape.parameters
        assert sum(read) <= shape.parameters + 96 * 16  # biases are read whole, some of them to be zero
    assert shape.heads == 2


def test_each_card_has_room_for_its_part(tmp_path: Path) -> None:
    """What is told of all ranks together is no more than what each has; what was asked for is of all, too."""
    model, free = tiny_model(tmp_path), 8 << 30
    settings = Settings(adapter_memory=64 << 20, device="cuda", tensor_parallel_size=2)
    share = load_share(setup_of(model, 0, 2))
    loaded = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16, max_model_len=512)
    decoder = SimpleNamespace(kv_bytes_per_block=1 << 12)
    started: Any = SimpleNamespace(loaded=loaded, decoder=decoder, share=share, free=free)
    division = divide_ranks(started, settings, EngineLimits.of(settings, accelerator=True))
    assert division.adapters == 64 << 20
    assert division.merged % 2 == 0
    each = division.num_blocks * (1 << 12) + (division.adapters + division.merged) // 2 + division.step
    assert each < free
    with pytest.raises(ConfigError, match="memory is too small"):
        divide_ranks(
            SimpleNamespace(**{**vars(started), "free": 1 << 28}),  # type: ignore[arg-type]
            settings,
            EngineLimits.of(settings, accelerator=True),
        )
