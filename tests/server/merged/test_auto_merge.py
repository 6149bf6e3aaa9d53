"""When a mix is merged without being asked for, and when that ends: the window over the traffic."""

from __future__ import annotations

import pytest

from manylora.server.merged.auto_merge import LOOKS, AutoMergeRules, TrafficWindow

RULES = AutoMergeRules(share=0.8, seconds=30.0, sequences=2.0)
BASE, A, B = b"", b"a", b"b"
Look = dict[bytes, int]


def seen(*looks: tuple[int, Look]) -> TrafficWindow:
    window = TrafficWindow(RULES)
    for times, look in looks:
        for _ in range(times):
            window.note(look)
    return window


@pytest.mark.parametrize(
    ("looks", "leader"),
    [
        ([], None),
        ([(LOOKS - 1, {A: 9})], None),  # not long enough
        ([(LOOKS, {A: 9})], A),
        ([(LOOKS, {A: 8, BASE: 2})], A),
        ([(LOOKS, {A: 7, BASE: 2})], None),
        ([(LOOKS, {BASE: 9})], None),  # the base needs no copy
        ([(LOOKS, {A: 1})], None),  # too little traffic
        ([(LOOKS, {A: 2})], A),
        ([(LOOKS, {})], None),
        ([(LOOKS, {B: 9}), (LOOKS, {A: 9})], A),
        ([(LOOKS, {B: 9}), (LOOKS // 2, {A: 9})], None),
        ([(LOOKS // 2, {A: 20}), (LOOKS // 2, {B: 1})], A),  # by the number of sequences
    ],
)
def test_who_leads(looks: list[tuple[int, Look]], leader: bytes | None) -> None:
    assert seen(*looks).leader() == leader


@pytest.mark.parametrize(
    ("looks", "faded"),
    [
        ([(LOOKS, {A: 9})], False),
        ([(LOOKS, {A: 61, B: 39})], False),  # others have twice what they may have at first
        ([(LOOKS, {A: 59, B: 41})], True),
        ([(LOOKS, {A: 1})], False),
        ([(LOOKS, {A: 2}), (LOOKS // 2 + 1, {})], True),
        ([(LOOKS, {A: 9}), (LOOKS, {})], True),
    ],
)
def test_who_has_faded(looks: list[tuple[int, Look]], faded: bool) -> None:
    assert seen(*looks).has_faded(A) is faded
