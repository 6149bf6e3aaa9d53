"""A row of every kind that is served in one fp32 batch, and each equals PEFT with that adapter alone."""

from __future__ import annotations

import pytest
import torch

from manylora.adapters.format.kinds.table import OPTIONS
from tests.support.every_kind import EveryKind
from tests.support.peft_oracle import read

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> EveryKind:
    return EveryKind(tmp_path_factory.mktemp("kinds"))


def test_every_kind_is_here(kinds: EveryKind) -> None:
    """BONE is MISS by an older name; POLY is written by no save_pretrained of ours, and has its own test."""
    served = {read(path, kinds.harness.base).kind.partition("+")[0] for path in kinds.paths.values()}
    assert served >= OPTIONS.keys() - {"BONE", "POLY"}


def test_one_batch_in_chunks_and_from_the_prefix_cache(kinds: EveryKind) -> None:
    kinds.harness.new_engine()
    first, _ = kinds.check()
    again, _ = kinds.check()
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in first]


def test_preemption(kinds: EveryKind) -> None:
    kinds.harness.new_engine(num_blocks=40)
    _, preemptions = kinds.check(max_tokens=20)
    assert preemptions > 0
    kinds.harness.new_engine()


def test_several_rows_of_each(kinds: EveryKind) -> None:
    kinds.harness.new_engine()
    kinds.check(times=2)


def test_after_eviction_and_reload(kinds: EveryKind) -> None:
    for pages in kinds.pages.values():
        kinds.harness.pool.release(pages)
    kinds.harness.pool.data.fill_(torch.nan)
    kinds.harness.pool.data[: next(iter(kinds.pages.values())).start] = 0
    kinds.pages = {n: kinds.harness.load(p) for n, p in reversed(kinds.paths.items())}
    kinds.harness.new_engine()
    kinds.check()
