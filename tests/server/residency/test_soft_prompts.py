"""Adapters with virtual tokens come and go on the device like any other, and always answer as PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.server.model.pages.packed_file import PREFIX
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import EngineHarness
from tests.support.soft_prompts import SoftPromptPeft, write_soft_prompt

NAMES = ("prompt", "multitask", "prefix", "cartridge")
PROMPT = prompt_of(40, 6)


@pytest.fixture
def small(harness: EngineHarness, tmp_path: Path) -> Iterator[ManagerSetup]:
    """Room for two adapters on the device, and none in host memory."""
    with open_manager_setup(harness, tmp_path, room=2) as made:
        yield made


def greedy(oracle: SoftPromptPeft, name: str, count: int = 8) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(oracle.logits(ids, name)[-1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.slow
async def test_eviction_and_reload(small: ManagerSetup, tiny_llama: Path, tmp_path: Path) -> None:
    """Brought in again from its packed file, it is what it was; so are the blocks that are still cached."""
    paths = {name: write_soft_prompt(tmp_path / f"{name}-1", tiny_llama, name) for name in NAMES}
    expected = SoftPromptPeft(tiny_llama, paths)
    engine = small.harness.new_engine()
    for name in NAMES:
        await small.publish(name, paths[name], f"test:{name}")
        assert await small.answer(name, PROMPT, engine) == greedy(expected, name)
    await small.load("a", "b", "c")  # fill the device
    for other in ("a", "b", "c"):
        await small.answer(other, PROMPT, engine)
    for name in NAMES:
        assert small.manager.views.status(name).residency.device == 0
    for fresh in (False, True):  # with the blocks of before, and without
        engine = small.harness.new_engine() if fresh else engine
        for name in NAMES:
            assert await small.answer(name, PROMPT, engine) == greedy(expected, name)
            assert await small.answer(name, PROMPT, engine) == greedy(expected, name)
    await small.quiet()
    small.check()
    assert len(list((tmp_path / "store").glob(f"*/{PREFIX}*"))) == len(NAMES) + 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
async def test_publishing_again(small: ManagerSetup, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    """The new revision never finds blocks of the old one, nor the other way round."""
    paths = {
        str(seed): write_soft_prompt(tmp_path / str(seed), tiny_llama, name, seed=seed) for seed in (1, 2)
    }
    oracle, engine = SoftPromptPeft(tiny_llama, paths), small.harness.new_engine()
    assert greedy(oracle, "1") != greedy(oracle, "2")
    for seed in ("1", "2", "1"):
        await small.publish("soft", paths[seed], f"test:{seed}")
        for _ in range(2):
            assert await small.answer("soft", PROMPT, engine) == greedy(oracle, seed)
    await small.quiet()
    small.check()
