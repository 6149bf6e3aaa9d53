"""Blocks: the prefix cache never gives away what another model, tenant or text computed, nothing leaks."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from manylora.server.engine.block_manager import BlockManager
from manylora.server.engine.sequence import Sequence
from manylora.server.kernels.inputs import BLOCK_SIZE
from tests.support.sequences import make_sequence, mix_of

TEXT = tuple(range(100, 100 + 3 * BLOCK_SIZE + 5))  # three full blocks and a rest


def computed(blocks: BlockManager, sequence: Sequence) -> Sequence:
    """Let ``sequence`` compute all its tokens."""
    assert blocks.grow(sequence, len(sequence))
    sequence.num_computed_tokens = len(sequence)
    blocks.commit(sequence)
    return sequence


def test_a_prefix_is_shared_block_by_block() -> None:
    blocks = BlockManager(20, "base")
    first = computed(blocks, make_sequence(TEXT))
    second = make_sequence((*TEXT[: 2 * BLOCK_SIZE], 7, 7, 7, *TEXT))
    assert blocks.match_prefix(second) == 2 * BLOCK_SIZE
    assert second.block_table == first.block_table[:2]
    assert blocks.num_used == 4
    blocks.check([first, second])
    blocks.free(first)
    assert blocks.num_used == 2
    blocks.check([second])


def test_the_last_token_is_always_left_to_compute() -> None:
    blocks = BlockManager(20, "base")
    whole = TEXT[: 2 * BLOCK_SIZE]
    computed(blocks, make_sequence(whole))
    assert blocks.match_prefix(make_sequence(whole)) == BLOCK_SIZE
    assert blocks.match_prefix(make_sequence((*whole, 1))) == 2 * BLOCK_SIZE


def test_freed_blocks_are_still_found_until_they_are_taken() -> None:
    blocks = BlockManager(20, "base")
    first = computed(blocks, make_sequence(TEXT))
    table = list(first.block_table)
    blocks.free(first)
    assert blocks.num_used == 0
    again = make_sequence(TEXT)
    assert blocks.match_prefix(again) == 3 * BLOCK_SIZE
    assert again.block_table == table[:3]
    blocks.check([again])


def test_only_computed_full_blocks_are_offered() -> None:
    blocks = BlockManager(20, "base")
    first = make_sequence(TEXT)
    assert blocks.grow(first, len(first))
    first.num_computed_tokens = BLOCK_SIZE + 3
    blocks.commit(first)
    assert blocks.match_prefix(make_sequence(TEXT)) == BLOCK_SIZE


@pytest.mark.parametrize(
    "other",
    [
        make_sequence(TEXT, mix=mix_of(b"A")),
        make_sequence(TEXT, mix=mix_of(b"B")),
        make_sequence(TEXT, salt=b"tenant"),
        make_sequence(TEXT, mix=mix_of(b"A"), salt=b"tenant"),
        make_sequence((TEXT[0] + 1, *TEXT[1:])),
    ],
    ids=["mix", "other mix", "salt", "mix and salt", "first token"],
)
def test_nothing_is_shared_across_mixes_tenants_or_texts(other: Sequence) -> None:
    blocks = BlockManager(20, "base")
    computed(blocks, make_sequence(TEXT))
    assert blocks.match_prefix(other) == 0


def test_salt_and_mix_do_not_run_into_each_other() -> None:
    blocks = BlockManager(20, "base")
    computed(blocks, make_sequence(TEXT, mix=mix_of(b"AB"), salt=b"C"))
    assert blocks.match_prefix(make_sequence(TEXT, mix=mix_of(b"A"), salt=b"BC")) == 0


def test_keys_depend_on_the_base() -> None:
    one, other = make_sequence(TEXT), make_sequence(TEXT)
    computed(BlockManager(20, "base"), one)
    computed(BlockManager(20, "another base"), other)
    assert set(one.block_hashes).isdisjoint(other.block_hashes)


def test_tokens_are_compared_when_a_hash_hits() -> None:
    blocks = BlockManager(20, "base")
    first = computed(blocks, make_sequence(TEXT))
    forged = make_sequence((9,) * len(TEXT))
    forged.block_hashes = list(first.block_hashes)  # every hash collides
    assert blocks.match_prefix(forged) == 0
    assert blocks.match_prefix(make_sequence(TEXT)) == 3 * BLOCK_SIZE


def test_two_copies_of_a_block_keep_one_entry() -> None:
    blocks = BlockManager(20, "base")
    first, second = make_sequence(TEXT), make_sequence(TEXT)  # both start before either is computed
    computed(blocks, first)
    computed(blocks, second)
    assert set(first.block_table).isdisjoint(second.block_table)
    blocks.check([first, second])
    blocks.free(second)
    third = make_sequence(TEXT)
    blocks.match_prefix(third)
    assert third.block_table == first.block_table[:3]


def test_growing_takes_everything_or_nothing() -> None:
    blocks = BlockManager(4, "base")
    sequence = make_sequence(TEXT)
    assert not blocks.fits(sequence, 3 * BLOCK_SIZE + 1)
    assert not blocks.grow(sequence, 3 * BLOCK_SIZE + 1)
    assert sequence.block_table == []
    assert blocks.grow(sequence, 3 * BLOCK_SIZE)
    assert blocks.num_free == 0
    assert 0 not in sequence.block_table, "block 0 is for padding"
    blocks.check([sequence])


def test_the_least_recently_used_blocks_go_first() -> None:
    blocks = BlockManager(7, "base")
    old = computed(blocks, make_sequence(TEXT[: 2 * BLOCK_SIZE]))
    new = computed(blocks, make_sequence(range(2 * BLOCK_SIZE)))
    blocks.free(old)
    blocks.free(new)
    taker = make_sequence([5] * 4 * BLOCK_SIZE)
    assert blocks.grow(taker, 2 * BLOCK_SIZE)  # the two that never held anything
    assert blocks.match_prefix(make_sequence(TEXT)) == 2 * BLOCK_SIZE  # touches the old ones: now newest


def test_the_end_of_a_prefix_goes_before_its_beginning() -> None:
    blocks = BlockManager(5, "base")
    first = computed(blocks, make_sequence(range(4 * BLOCK_SIZE)))
    blocks.free(first)
    assert blocks.grow(make_sequence([5] * 16), BLOCK_SIZE)
    assert blocks.match_prefix(make_sequence(range(5 * BLOCK_SIZE))) == 3 * BLOCK_SIZE


def test_blocks_that_hold_nothing_shareable_are_reused_first() -> None:
    blocks = BlockManager(5, "base")
    kept = computed(blocks, make_sequence(range(2 * BLOCK_SIZE)))
    scrap = make_sequence(TEXT)
    assert blocks.grow(scrap, 2 * BLOCK_SIZE)
    blocks.free(kept)
    blocks.free(scrap)
    assert blocks.grow(make_sequence([5] * 64), 2 * BLOCK_SIZE)
    assert blocks.match_prefix(make_sequence(range(3 * BLOCK_SIZE))) == 2 * BLOCK_SIZE


@pytest.mark.parametrize("reason", ["switched off", "prompt logprobs need every row"])
def test_no_prefix_is_taken_when(reason: str) -> None:
    blocks = BlockManager(20, "base", prefix_cache=reason != "switched off")
    computed(blocks, make_sequence(TEXT))
    scores = None if reason == "switched off" else 0
    assert blocks.match_prefix(make_sequence(TEXT, prompt_logprobs=scores)) == 0


def test_check_notices_a_lost_reference() -> None:
    blocks = BlockManager(20, "base")
    first = computed(blocks, make_sequence(TEXT))
    blocks.check([first])
    with pytest.raises(AssertionError, match="references"):
        blocks.check([])


class SequencesOverBlocks(RuleBasedStateMachine):
    """Sequences of a few tenants and mixes live and die on a small cache, in any order."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(13, "base")
        self.live: list[Sequence] = []
        self.origin: dict[int, tuple[bytes, array[int]]] = {}  # block -> what was computed into it

    @rule(
        target=sequences,
        mix=st.sampled_from([b"", b"A"]),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4),
        rest=st.integers(0, BLOCK_SIZE - 1),
    )
    def arrive(self, mix: bytes, tokens: list[int], rest: int) -> Sequence:
        text = [t for t in tokens for _ in range(BLOCK_SIZE)] + [2] * rest
        sequence = make_sequence(text, mix=mix_of(mix) if mix else None)
        matched = self.blocks.match_prefix(sequence)
        assert matched < len(sequence)
        for index, block in enumerate(sequence.block_table):
            tokens_here = array("l", text[: (index + 1) * BLOCK_SIZE])
            assert self.origin[block] == (mix, tokens_here), "a block of other content was given"
        sequence.num_computed_tokens = matched
        self.live.append(sequence)
        return sequence

    @rule(sequence=sequences, count=st.integers(1, 3 * BLOCK_SIZE))
    def compute(self, sequence: Sequence, count: int) -> None:
        if sequence not in self.live:
            return
        upto = min(len(sequence), sequence.num_computed_tokens + count)
        first = sequence.num_computed_tokens
        if not self.blocks.grow(sequence, upto):
            return
        for index in range(first // BLOCK_SIZE, -(-upto // BLOCK_SIZE)):
            text = array("l", sequence.token_ids[: (index + 1) * BLOCK_SIZE])
            self.origin[sequence.block_table[index]] = (sequence.mix.digest, text)
        sequence.num_computed_tokens = upto
        self.blocks.commit(sequence)

    @rule(sequence=sequences, token=st.integers(0, 2))
    def append(self, sequence: Sequence, token: int) -> None:
        if sequence in self.live and sequence.num_uncomputed_tokens == 0:
            sequence.token_ids.append(token)

    @rule(target=sequences, sequence=sequences)
    def free(self, sequence: Sequence) -> object:
        if sequence in self.live:
            self.live.remove(sequence)
        self.blocks.free(sequence)
        return multiple()

    @invariant()
    def balanced(self) -> None:
        self.blocks.check(self.live)


SequencesOverBlocks.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSequencesOverBlocks = SequencesOverBlocks.TestCase
