"""Equality, as in ``test_equality.py``, of what needs ranks of its own: a process has them only once."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.support.pair_of_engines import Pair

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]


@pytest.mark.parametrize("family", ["olmo2", pytest.param("olmo3", marks=pytest.mark.sweep)])
def test_norms_of_all_heads_together(tmp_path: Path, family: str) -> None:
    """Each rank has its part of them, and adapters and merged copies may change them."""
    some = ("dora", "ia3", "saved-norms")
    of_all = Pair(tmp_path, family, some=some, num_attention_heads=8, num_key_value_heads=4)
    with closing(of_all.sides[1]):
        of_all.compare([{}, *({name: 1.0} for name in of_all.paths), {"saved-norms": 0.5, "dora": -1.0}])
        of_all.compare_merged({"all": 0.5, "saved-norms": 0.7})


@pytest.mark.sweep
def test_a_cache_in_8_bits(tmp_path: Path) -> None:
    coded = Pair(tmp_path, coded_cache=True)
    with closing(coded.sides[1]):
        coded.compare([{}, {"all": 1.0}, {"dora-bias": 0.5, "mlp": 1.0}])
