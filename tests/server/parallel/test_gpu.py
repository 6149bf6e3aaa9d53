"""Parts of a decoder on a real GPU. One card is enough: NCCL with one rank, two ranks over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from manylora.server.model.base import load_base
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.loader import LoadedModel, load_model
from manylora.server.model.pages.pool import PagePool
from manylora.server.model.parallel import starting
from manylora.server.model.parallel.group import Group
from manylora.server.model.parallel.parts.sharding import Sharding
from manylora.server.model.warm_up import warm_up
from manylora.server.options.settings import Settings
from tests.support.adapter_set import prompt_of
from tests.support.kernel_cases import Batcher, Sequence_
from tests.support.tiny_models import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HEADS = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load_model(tiny_model(tmp_path, "qwen3", **HEADS), dtype="fp32", device="cuda", max_model_len=None)


@pytest.fixture
def group(loaded: LoadedModel, tmp_path: Path) -> Iterator[Group]:
    made = Group(Sharding.of(loaded.hf.config, 0, 1), torch.device("cuda", 0), "nccl", tmp_path / "meeting")
    yield made
    dist.destroy_process_group()


def decoder_of(loaded: LoadedModel, group: Group | None) -> FusedDecoder:
    decoder = FusedDecoder(loaded.hf, loaded.max_model_len, "native", ranks=group)
    pool = PagePool(decoder.modules, 8 << 20, loaded.dtype, loaded.device, decoder, tables=decoder.tables)
    decoder.allocate(pool.data, 64, 64)
    return decoder


def logits_of(decoder: FusedDecoder, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    """Logits of every token, computed in chunks of ``cuts``."""
    sequence = Sequence_(tokens, [7, 3, 11])
    steps = [Batcher.step([(sequence, count)], all_logits=True) for count in cuts]
    return torch.cat([decoder.step(step).float().clone() for step in steps])


def test_sums_of_nccl_are_captured(loaded: LoadedModel, group: Group) -> None:
    """In CUDA graphs, with the logits of a decoder without sums."""
    divided, plain = decoder_of(loaded, group), decoder_of(loaded, None)
    warm_up(divided, rows=64, sequences=8, context=64)
    capturing = divided.capturing
    assert capturing is not None
    assert capturing.num_failed == 0
    tokens = list(prompt_of(40))
    cuts = [20, *[1] * 20]
    torch.testing.assert_close(
        logits_of(divided, tokens, cuts), logits_of(plain, tokens, cuts), atol=1e-3, rtol=1e-3
    )


def test_two_ranks_pass_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one card, over gloo, which can't be captured: what is launched then is right."""
    monkeypatch.setattr(starting, "devices_of", lambda _, count: [torch.device("cuda", 0)] * count)
    monkeypatch.setattr(starting, "backend_for", lambda _: "gloo")
    model = tiny_model(tmp_path / "model", "qwen3", **HEADS)
    settings = Settings(
        device="cuda", dtype="fp32", kernels="native", tensor_parallel_size=2, data_dir=tmp_path,
        kv_cache_memory=1 << 26, adapter_memory=1 << 26,
    )  # fmt: skip
    base = load_base(settings, model)
    assert base.ranks is not None
    with closing(base.ranks):
        assert base.prepared.decoder.kernels == "triton"
        assert base.prepared.probe_error < 1e-3
