"""Kinds with a dense, sparse, orthogonal or block-wise change: published, evicted, and as merged copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manylora.server.engine.sequence import ResolvedMix
from manylora.server.model.decoders.merging import merge
from tests.support.adapter_manager import open_manager_setup
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import EngineHarness
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.peft_oracle import assert_logits_match, read
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "llama-untied-bias")


@pytest.fixture(scope="module")
def harness(model: Path) -> EngineHarness:
    return EngineHarness(model)


@pytest.fixture(scope="module")
def paths(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_matrix_kinds(tmp_path_factory.mktemp("kinds"), model, "llama-untied-bias")


def test_a_merged_copy_answers_like_its_adapter(harness: EngineHarness, paths: dict[str, Path]) -> None:
    for name, path in paths.items():
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


async def test_published_evicted_and_loaded_again(
    harness: EngineHarness, paths: dict[str, Path], tmp_path: Path
) -> None:
    names = ("oft", "road", "glora", "fourierft-few", "randlora-seed", "supra", "beft")
    with open_manager_setup(harness, tmp_path, room=32) as setup:
        for name in names:
            await setup.publish(name, paths[name], str(paths[name]))
        first = [await setup.answer(name, prompt_of(12, 5), harness.new_engine()) for name in names]
        again = [await setup.answer(name, prompt_of(12, 5), harness.new_engine()) for name in names]
        mix = await setup.answer("oft*0.5+road*-0.5", prompt_of(12, 5), harness.new_engine())
        sizes = {
            name: harness.pool.pack("", read(paths[name], harness.base).delta).data.nbytes for name in names
        }
        assert sum(sizes.values()) > setup.pool.capacity_bytes > 2 * max(sizes.values()), "some are evicted"
        await setup.manager.close()
    assert first == again
    assert len({*map(tuple, first), tuple(mix)}) > 4
