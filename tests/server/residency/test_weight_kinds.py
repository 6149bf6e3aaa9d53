"""The weight kinds through publishing, eviction, their packed files and merged copies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from manylora.adapters.errors import AdapterTooLarge, ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.server.engine.sequence import ResolvedMix
from manylora.server.kernels.buffers import ReusedMemory
from manylora.server.model.decoders.merging import merge
from manylora.server.model.pages.packed_file import Packing, read_packed, serialize
from manylora.server.model.pages.pool import PagePool
from tests.support.adapter_manager import open_manager_setup
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model
from tests.support.weight_kinds import WRITES

MOST = 1 << 24
FAMILY = "llama-untied-bias"


class Published(NamedTuple):
    """Adapters that are published into a device cache that does not hold all of them, and a mix of two."""

    names: tuple[str, ...]
    room: int
    mix: str


PUBLISHED = {
    "low rank": Published(
        ("adalora", "hra", "loha-some", "miss-bat", "unilora", "vblora-top"), 12, "hra*0.5+miss-bat*-0.5"
    ),
    "matrices": Published(
        ("oft", "road", "glora", "fourierft-few", "randlora-seed", "supra", "beft"), 16, "oft*0.5+road*-0.5"
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), FAMILY)


@pytest.fixture(scope="module")
def harness(model: Path) -> EngineHarness:
    return EngineHarness(model)


@pytest.fixture(scope="module")
def all_paths(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {kinds: write(tmp_path_factory.mktemp("kinds"), model, FAMILY) for kinds, write in WRITES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kinds", WRITES)
def test_what_was_packed_comes_back(
    harness: EngineHarness, all_paths: dict[str, dict[str, Path]], tmp_path: Path, kinds: str
) -> None:
    form = Packing.of(harness.pool.modules, "weights", harness.pool.data.dtype)
    for name, path in all_paths[kinds].items():
        artifact = read(path, harness.base)
        packed = harness.pool.pack(artifact.digest, artifact.delta)
        (tmp_path / form.file_name).write_bytes(b"".join(serialize(packed, form)))
        found = read_packed(tmp_path, artifact.digest, form, 1 << 30, ReusedMemory(0))
        assert found is not None, name
        assert torch.equal(found.data, packed.data)
        assert (found.offset == packed.offset).all()
        assert (found.rank.tolist(), found.stated_rank) == (packed.rank.tolist(), packed.stated_rank)
        assert found.rank.max() == packed.rank.max() <= artifact.rank
        assert (found.vectors is None) == (packed.vectors is None)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", WRITES)
def test_a_merged_copy_answers_like_its_adapter(
    harness: EngineHarness, all_paths: dict[str, dict[str, Path]], kinds: str
) -> None:
    for name, path in all_paths[kinds].items():
        copy = harness.decoder.merged()
        members = [(read(path, harness.base).delta, 0.6)]
        assert list(merge(harness.decoder, members, copy))[-1] == 1.0
        merged = harness.sequence(prompt_of(9, 3), max_tokens=2)
        merged.mix = ResolvedMix((), name.encode(), name, copy)
        beside = harness.sequence(prompt_of(9, 3), (harness.load(path), 0.6), max_tokens=2)
        with recorded_logits() as logits:
            answers = harness.run(merged, beside)
        assert_logits_match(torch.stack(logits[merged.id]), torch.stack(logits[beside.id]), name=name)
        assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.slow
@pytest.mark.parametrize("kinds", WRITES)
async def test_published_evicted_and_loaded_again(
    harness: EngineHarness, all_paths: dict[str, dict[str, Path]], tmp_path: Path, kinds: str
) -> None:
    (names, room, mix), paths = PUBLISHED[kinds], all_paths[kinds]
    with open_manager_setup(harness, tmp_path, room=room) as setup:
        for name in names:
            await setup.publish(name, paths[name], str(paths[name]))
        first = [await setup.answer(name, prompt_of(12, 5), harness.new_engine()) for name in names]
        again = [await setup.answer(name, prompt_of(12, 5), harness.new_engine()) for name in names]
        mixed = await setup.answer(mix, prompt_of(12, 5), harness.new_engine())
        sizes = [harness.pool.pack("", read(paths[name], harness.base).delta).data.nbytes for name in names]
        assert sum(sizes) > setup.pool.capacity_bytes > max(sizes), "some are evicted"
        await setup.manager.close()
    assert first == again
    assert len({*map(tuple, first), tuple(mixed)}) > 4


@pytest.mark.slow
def test_the_rank_that_the_config_states_is_limited(
    harness: EngineHarness, all_paths: dict[str, dict[str, Path]]
) -> None:
    """Not what it comes to in rank pages: 64 for LoHa of rank 12."""
    paths = all_paths["low rank"]
    read_artifact(paths["loha-some"], harness.base, Limits(max_rank=12, max_bytes=MOST))
    for name, rank in {"loha-some": 12, "hra": 5, "vblora": 3, "gralora-hybrid": 19, "miss-bat": 8}.items():
        with pytest.raises(ArtifactError, match=rf"rank {rank} of .* above the limit of {rank - 1}"):
            read_artifact(paths[name], harness.base, Limits(max_rank=rank - 1, max_bytes=MOST))


@pytest.mark.slow
def test_what_no_empty_pool_can_hold_is_refused_before_it_is_laid_out(
    harness: EngineHarness, all_paths: dict[str, dict[str, Path]]
) -> None:
    artifact = read(all_paths["low rank"]["lokr-whole"], harness.base)
    small = PagePool(harness.pool.modules, 1 << 16, torch.float32, torch.device("cpu"), harness.decoder)
    with pytest.raises(AdapterTooLarge, match=r"needs \d+ bytes of adapter memory"):
        small.pack(artifact.digest, artifact.delta)
