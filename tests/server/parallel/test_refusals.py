"""What can't be divided is refused by name, before anything is loaded or served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import TargetModule
from manylora.server.errors import ConfigError, ModelRefused
from manylora.server.kernels.inputs import VectorPages
from manylora.server.model.loading import device as devices
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.model.parallel import leader
from manylora.server.model.parallel.parts.sharding import Cut, Sharding, unsupported
from manylora.server.model.parallel.parts.splitting import Splitter
from manylora.server.model.parallel.setup import RankSetup
from manylora.server.model.parallel.starting import start_ranks
from tests.support.tiny_models import FAMILIES, tiny_model


def config_of(family: str, **changes: Any) -> Any:
    settings = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
    }
    settings |= FAMILIES[family] | changes
    return AutoConfig.for_model(settings.pop("model_type", family), **settings)


@pytest.mark.parametrize(
    ("family", "changes", "count", "reason"),
    [
        ("llama", {}, 2, None),
        ("llama", {}, 4, None),  # heads of keys and values are on two ranks each
        ("llama", {}, 3, "4 attention heads don't divide into 3 equal parts"),
        (
            "llama",
            {"intermediate_size": 97},
            2,
            "97 inner features of the MLP don't divide into 2 equal parts",
        ),
        (
            "llama",
            {"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 96},
            4,
            "6 heads of keys and values can neither be divided between 4 ranks nor repeated",
        ),
        ("mixtral", {}, 2, "experts are not divided"),
        ("olmo2", {"num_key_value_heads": 4}, 2, None),
        ("olmo2", {"num_key_value_heads": 2}, 2, "each rank needs two heads at least, and there are 2"),
        ("gpt2", {}, 2, "the generic decoder"),
        ("llama", {"hidden_act": "relu"}, 2, "the generic decoder"),
    ],
)
def test_models(family: str, changes: dict[str, Any], count: int, reason: str | None) -> None:
    found = unsupported(config_of(family, **changes), count)
    assert found is None if reason is None else reason in str(found)


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "model")
    started: list[object] = []
    monkeypatch.setattr("manylora.server.model.parallel.starting.Leader", started.append)

    def refused(error: type[Exception], directory: Path = model, **options: Any) -> str:
        asked = {"dtype": "fp32", "device": "cpu", "max_model_len": None} | options
        with pytest.raises(error) as caught:
            start_ranks(directory, asked.pop("count", 2), **asked)
        return str(caught.value)

    assert "a base in few bits (nf4) is not divided" in refused(ConfigError, quantize="nf4")
    assert "--tensor-parallel-size 3: 4 attention heads" in refused(ConfigError, count=3)
    assert "this model's context is 512 tokens" in refused(ConfigError, max_model_len=9999)
    assert "--kernels native" in refused(ConfigError, kernels="native")
    assert "fp16: for accelerators" in refused(ConfigError, dtype="fp16")
    assert str(tmp_path) in refused(ModelRefused, tmp_path / "none")
    monkeypatch.setattr(devices, "device_count", lambda _: 3)
    monkeypatch.setattr("manylora.server.model.parallel.starting.device_count", lambda _: 3)
    assert "from cuda:2 on there are 1 devices" in refused(ConfigError, device="cuda:2")
    assert "not on xpu" in refused(ConfigError, device="xpu")
    assert not started


SETUP = RankSetup(
    directory=Path(),
    rank=1,
    count=2,
    device=torch.device("cpu"),
    dtype=torch.float32,
    max_model_len=None,
    kernels="auto",
    coded_cache=False,
    backend="gloo",
    meeting=Path(),
    threads=1,
    log_level="WARNING",
)


@pytest.mark.parametrize(("silent", "said"), [(False, "^rank 1: no room$"), (True, "a rank has ended")])
def test_a_rank_that_can_not_do_its_part(silent: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if silent:
        monkeypatch.setenv("FAKE_RANK_SILENT", "1")
    ranks = leader.Leader([SETUP], "tests.support.fake_rank")
    with pytest.raises(ConfigError, match=said):
        ranks.join()
    assert "rank 1" in str(ranks.until_lost())  # its end was noticed
    ranks.close()
    assert ranks.statuses == [1]
    with pytest.raises(leader.RanksLost, match="has ended with status 1"):
        ranks.capturing("seal")


NONE = np.array([-1], np.int64)
ZERO = np.zeros(1, np.int64)
BARE = VectorPages(NONE, NONE, NONE, NONE, NONE, NONE, ZERO, ZERO)


def divided(vectors: VectorPages, cuts: Sequence[Cut], data: torch.Tensor) -> PackedAdapter:
    """An adapter with one module of 8 inputs and 8 outputs, divided."""
    packed = PackedAdapter("", data, np.zeros(1, np.int64), np.zeros(1, np.int32), vectors=vectors)
    shardings = [SimpleNamespace(kv_heads=2, head_dim=4) for _ in cuts]
    modules = [TargetModule("down", 8, 8)]
    return Splitter(modules, [[cut] for cut in cuts], shardings).divide(packed)  # type: ignore[arg-type]


def test_outputs_that_are_paired_across_ranks() -> None:
    """RoAd turns pairs of outputs: each pair has to be on one rank."""
    halves = [Cut(outputs=(range(4),)), Cut(outputs=(range(4, 8),))]
    data = torch.arange(32.0)
    paired = replace(BARE, partner=np.array([0]), distance=np.array([2]))
    found = divided(paired, halves, data)
    assert found.data.view(2, 32)[:, :5].tolist() == [[0, 1, 2, 3, 0], [4, 5, 6, 7, 0]]
    with pytest.raises(ArtifactError, match="mixes outputs of down that --tensor-parallel-size 2 gives to"):
        divided(replace(paired, distance=np.array([4])), halves, data)


def test_inputs_that_are_mixed_across_ranks() -> None:
    """Blocks are wider than what is mixed in them: only what is mixed may not be cut."""
    halves = [Cut(inputs=range(4)), Cut(inputs=range(4, 8))]
    mixed = torch.zeros(8, 32)  # Q of one block of 32, of which there are 8 inputs
    mixed[:4, :4] = torch.arange(1.0, 17.0).view(4, 4)
    mixed[4:, 4:8] = -mixed[:4, :4]
    blocks = replace(BARE, input_blocks=np.array([0]), block_size=np.array([32]))
    first, second = divided(blocks, halves, mixed.flatten()).data.view(2, 4, 32)
    assert torch.equal(second, -first)
    assert torch.equal(first, mixed[:4])
    mixed[3, 4] = 1.0
    with pytest.raises(ArtifactError, match="mixes inputs of down"):
        divided(blocks, halves, mixed.flatten())


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("stacked", [False, True])
def test_parts_cover_the_whole(count: int, stacked: bool) -> None:
    """Every output and input is on one rank; of keys and values on as many as there are ranks too many."""
    whole = Sharding(0, count, heads=8, kv_heads=4, head_dim=2, inner=24, vocabulary=45)
    ranks = [replace(whole, rank=rank) for rank in range(count)]
    for matrix, widths in {"qkv": (16, 8, 8), "o": (16,), "gate_up": (24, 24), "down": (24,)}.items():
        expected = np.ones(sum(widths), int)
        if matrix == "qkv":
            expected[16:] = max(1, count // 4)
        counted = np.zeros_like(expected)
        starts = [0] if stacked or len(widths) == 1 else np.cumsum([0, *widths[:-1]]).tolist()
        for rank in ranks:
            for start, cut in zip(starts, rank.cuts(matrix, stacked=stacked), strict=True):
                for part in cut.outputs or (cut.inputs,):
                    assert part is not None
                    counted[start + part.start : start + part.stop] += 1
        assert counted.tolist() == expected.tolist()
    assert [token for rank in ranks for token in rank.tokens] == list(range(45))
