"""Single kernels and whole native steps on random decoders of many shapes, against fp32 arithmetic."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant, usable_variants
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.kernel_cases import (
    CHANGES,
    MIXED_INPUTS,
    PAIRS,
    VECTORS,
    Batcher,
    Pages,
    Sequence_,
    Shape,
    library_of,
    oracle,
    random_decoder,
    relative_error,
    variants_under_test,
)

BLOCKS = 128
STACKED = "stacked modules, part of a head turns"

SHAPES = {
    "plain": Shape(),
    "biases and norms of q and k": Shape(bias=True, qk_norm=True),
    "windows": Shape(windows=(40, None, 16), layers=3),
    "one head each": Shape(heads=2, kv_heads=2, head_dim=16, hidden=48, intermediate=80),
    "groups of 3": Shape(heads=9, kv_heads=3, head_dim=64, hidden=96, intermediate=160, vocab=300),
    "groups of 4": Shape(heads=8, kv_heads=2, head_dim=96, hidden=80, intermediate=112),
    "groups of 7, head size 80": Shape(
        heads=14, kv_heads=2, head_dim=80, hidden=64, intermediate=48, bias=True
    ),
    "groups of 16": Shape(heads=16, kv_heads=1, head_dim=32, hidden=112, intermediate=64, vocab=33),
    "head size 128": Shape(heads=4, kv_heads=2, head_dim=128, hidden=64, intermediate=64),
    "norms around, caps, an offset and GELU": Shape(
        post_norms=True,
        qk_norm=True,
        norm_offset=1.0,
        gelu=True,
        windows=(24, None),
        ropes=(1, 0),
        embedding_scale=2.5,
        score_cap=1.5,
        logit_cap=2.0,
    ),
    "norms behind and of all heads together": Shape(
        pre_norms=False, post_norms=True, qk_norm=True, joint_qk_norm=True, heads=6
    ),
    STACKED: Shape(stacked=True, turned=24, heads=6, head_dim=32, intermediate=160, windows=(40,)),
    "multipliers, a layer without positions": Shape(
        ropes=(0, None), embedding_scale=0.5, residual_scale=0.4, logit_scale=3.0, layers=3
    ),
    "experts": Shape(experts=5, chosen=2, intermediate=48, residual_scale=0.7),
    "many experts, shares as they are": Shape(
        experts=40, chosen=7, normalized=False, intermediate=32, gelu=True, post_norms=True
    ),
}
FEATURES = tuple(SHAPES)[-6:]
# Of what has its bits compared: of features with all that adapters do; the rest in the long run.
BITS = [
    *product(("plain", "groups of 3", "groups of 7, head size 80", "windows"), ("base", "mix", "vectors")),
    *product(("plain", "groups of 3", "groups of 7, head size 80"), ("changes", "pairs", "blocks")),
    *((name, "vectors") for name in FEATURES[:-1]),
    *((STACKED, adapted) for adapted in ("changes", "pairs", "blocks")),
    *(pytest.param(*case, marks=pytest.mark.sweep) for case in product(FEATURES, ("base", "mix"))),
    pytest.param(FEATURES[-1], "vectors", marks=pytest.mark.sweep),
]


@pytest.fixture(scope="module", params=variants_under_test(), ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    library_of(chosen)  # fails here, not in the first test, if it can't be compiled
    return chosen


def native_step(shape: Shape, pages: Pages, variant: Variant, threads: int = 2) -> NativeStep:
    return NativeStep(random_decoder(shape), pages.pool, BLOCKS, 8, threads, library=library_of(variant))


def test_exp_is_accurate_to_two_units(variant: Variant) -> None:
    x = torch.cat(
        [torch.linspace(-87.0, 88.0, 4096), torch.tensor([0.0, -0.0, -1e-8, -88.0, -1e30, -torch.inf])]
    )
    x = torch.nn.functional.pad(x, (0, -len(x) % 16))
    y = torch.empty_like(x)
    library_of(variant).native.manylora_exp(x.data_ptr(), y.data_ptr(), len(x))
    exact = torch.where(x < -87, 0.0, x.double().exp())
    assert torch.all((y - exact).abs() <= exact * 2 * 2.0**-23)
    assert torch.all(y[x == 0] == 1)


def test_exp_keeps_nan(variant: Variant) -> None:
    x = torch.full((16,), torch.nan)
    y = torch.zeros(16)
    library_of(variant).native.manylora_exp(x.data_ptr(), y.data_ptr(), 16)
    assert y.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 12, 13, 25, 49, 150])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 16), (96, 48), (160, 576), (7, 144)])
def test_gemm(variant: Variant, rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(rows)
    native = library_of(variant).native
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    padded = outputs + -outputs % 32
    packed, y = torch.empty(padded * inputs, dtype=torch.bfloat16), torch.empty(rows, padded)
    native.manylora_pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
    native.manylora_gemm(x.data_ptr(), packed.data_ptr(), y.data_ptr(), rows, outputs, inputs, 2)
    exact = x.double() @ weight.double().T
    assert (y[:, :outputs] - exact).abs().max() < 1e-5 * inputs
    assert (y[:, outputs:] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_steps_err_no_more_than_bf16_must(shape: Shape, variant: Variant) -> None:
    """Prompts of uneven length together, then decode; base, single adapters and mixes in one batch."""
    weights = random_decoder(shape)
    pages = Pages(weights)
    small, odd = pages.random(3, seed=1), pages.random([17, 1, 0, 5, 64, 3, 16], seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    backends = (
        native_step(shape, pages, variant),
        ReferenceStep(weights, pages.pool, BLOCKS),
        oracle(weights, pages.pool, BLOCKS),
    )
    batch = Batcher(BLOCKS, shape.vocab)
    mixes = [
        (),
        ((small, 1.0),),
        ((odd, 1.0),),
        ((odd, -0.5), (small, 1.5)),
        ((small, 1.0),),
        (),
        ((scaled, 1.0),),
        ((odd, 0.3), (scaled, -0.7)),
        ((scaled, 1.0),),
    ]
    lengths = (300, 17, 40, 16, 5, 4, 30, 6, 4)
    sequences = [batch.sequence(n, mix) for n, mix in zip(lengths, mixes, strict=True)]
    errors = []
    for counts in ([len(s.tokens) - 3 for s in sequences], [1] * 9, [1] * 9, [1] * 9):
        inputs = batch.step(list(zip(sequences, counts, strict=True)), all_logits=True)
        native, rounded, exact = (backend.step(inputs) for backend in backends)
        errors.append((relative_error(native, exact), relative_error(rounded, exact)))
    ours, theirs = np.sqrt(np.square(errors).mean(axis=0))
    assert ours < 1.3 * theirs, errors


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 16, 17, 31, 64])
@pytest.mark.parametrize("rows", [1, 2, 3, 60])
def test_the_delta_of_an_adapter(rank: int, rows: int, variant: Variant) -> None:
    """What an adapter changes, compared by itself, so that the base can't hide an error."""
    shape = Shape(hidden=80, intermediate=112, layers=1)
    weights = random_decoder(shape)
    pages = Pages(weights)
    mix = ((pages.random(rank, seed=rank, strength=2.0), 0.7),)
    native, exact = native_step(shape, pages, variant), oracle(weights, pages.pool, BLOCKS)
    batch = Batcher(BLOCKS, shape.vocab)
    plain = batch.sequence(rows)
    changed = Sequence_(plain.tokens, batch.sequence(rows).blocks, mix)
    inputs = [batch.step([(s, rows)], all_logits=True) for s in (plain, changed)]
    delta = native.step(inputs[1]).clone() - native.step(inputs[0])
    expected = exact.step(inputs[1]) - exact.step(inputs[0])
    assert expected.norm() > 0.1 * exact.step(inputs[0]).norm()
    assert relative_error(delta, expected) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 60])
@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize(
    "letters", [*(pytest.param(letter, marks=pytest.mark.sweep) for letter in "gcimpb"), "gcimpb"]
)
def test_the_delta_of_vectors(letters: str, place: int, rows: int, variant: Variant) -> None:
    """On each module by itself; twice in one mix, with other weights."""
    check_delta_of_vectors(
        Shape(hidden=80, intermediate=112, layers=1, bias=True), letters, place, rows, variant
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("letters", ["m", "p", "gcimpb"])
def test_the_delta_of_vectors_of_stacked_modules(
    letters: str, place: int, rows: int, variant: Variant
) -> None:
    """Of q, k and v together, and of gate and up, whose halves are multiplied."""
    shape = Shape(hidden=80, intermediate=160, layers=1, bias=True, stacked=True)
    check_delta_of_vectors(shape, letters, place, rows, variant)


def check_delta_of_vectors(shape: Shape, letters: str, place: int, rows: int, variant: Variant) -> None:
    weights = random_decoder(shape)
    pages = Pages(weights)
    adapters = [
        pages.random(0, seed=seed, strength=3.0, vectors=[letters if m == place else "" for m in range(7)])
        for seed in (1, 2)
    ]
    mix = ((adapters[0], 0.7), (adapters[1], -0.4))
    native, exact = native_step(shape, pages, variant), oracle(weights, pages.pool, BLOCKS)
    batch = Batcher(BLOCKS, shape.vocab)
    plain = batch.sequence(rows)
    changed = Sequence_(plain.tokens, batch.sequence(rows).blocks, mix)
    inputs = [batch.step([(s, rows)], all_logits=True) for s in (plain, changed)]
    delta = native.step(inputs[1]).clone() - native.step(inputs[0])
    expected = exact.step(inputs[1]) - exact.step(inputs[0])
    whole = exact.step(inputs[0]).norm()
    assert (delta - expected).norm() < 0.05 * expected.norm() + 0.005 * whole
    if place > 1:  # a few rows hardly tell what q and k are
        assert expected.norm() > 0.05 * whole


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 15, 16, 17, 127, 128, 129, 260, 1000])
@pytest.mark.parametrize("window", [None, 1, 100, 128])
def test_long_contexts(length: int, window: int | None, variant: Variant) -> None:
    """Block, chunk and window boundaries; a lone long row is split over the threads by context."""
    shape = Shape(windows=(window,), layers=1, positions=1024)
    weights = random_decoder(shape)
    pages = Pages(weights)
    native, exact = native_step(shape, pages, variant, threads=3), oracle(weights, pages.pool, BLOCKS)
    sequence = Batcher(BLOCKS, shape.vocab).sequence(length + 1)
    for count in (length, 1):
        inputs = Batcher.step([(sequence, count)], all_logits=True)
        assert relative_error(native.step(inputs), exact.step(inputs)) < 0.02


def logits_of(
    native: NativeStep, sequence: Sequence_, cuts: list[int], others: list[Sequence_]
) -> torch.Tensor:
    """Logits of every token of ``sequence``, computed in chunks of ``cuts`` beside ``others``."""
    sequence.done = 0
    rows = []
    for count in cuts:
        beside = [(other, 1) for other in others if other.done < len(other.tokens)]
        logits = native.step(Batcher.step([*beside, (sequence, count)], all_logits=True))
        rows.append(logits[len(beside) :].clone())
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapted"), BITS)
def test_the_same_bits_in_any_batch_chunking_and_number_of_threads(
    name: str, adapted: str, variant: Variant
) -> None:
    shape = SHAPES[name]
    pages = Pages(random_decoder(shape))
    first, second = pages.random(5, seed=1), pages.random(33, seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    inputs_only = pages.random(0, seed=4, vectors=["i"] * 7)
    whole = pages.random([0, 4, 0, 0, 3, 0, 0], seed=5, vectors=CHANGES)
    pairs = pages.random([0, 0, 2, 3, 0, 0, 0], seed=7, vectors=PAIRS)
    blocks = pages.random([0, 0, 2, 3, 0, 0, 0], seed=8, vectors=MIXED_INPUTS)
    wholes_only = pages.random(0, seed=6, vectors=["m"] * 7)
    mix = {
        "base": (),
        "mix": ((first, 0.5), (second, 1.0)),
        "vectors": ((first, 0.5), (scaled, 0.8), (inputs_only, -0.3)),
        "changes": ((whole, 0.6), (first, 0.5), (wholes_only, -0.3), (scaled, 0.8)),
        "blocks": ((blocks, 0.6), (first, 0.5), (whole, 0.4), (inputs_only, 0.8)),
        "pairs": ((pairs, 0.6), (first, 0.5), (whole, 0.4), (inputs_only, 0.8)),
    }[adapted]
    batch = Batcher(BLOCKS, shape.vocab)
    sequence = batch.sequence(200, mix)
    others = [
        batch.sequence(n, m)
        for n, m in (
            (60, ()),
            (30, ((first, 2.0),)),
            (90, mix),
            (20, mix),
            (8, mix),
            (40, ((inputs_only, 1.0),)),
            (25, ((scaled, 1.0), (second, 0.2))),
            (35, ((wholes_only, 1.0),)),
            (9, ((pairs, 1.0),)),
            (12, ((blocks, 1.0),)),
        )
    ]
    alone = logits_of(native_step(shape, pages, variant, threads=1), sequence, [200], [])
    for threads, cuts in (
        (1, [1] * 200),
        (2, [200]),
        (2, [1] * 200),
        (3, [7] * 28 + [4]),
        (2, [130, 1, 1, 68]),
    ):
        for other in others:
            other.done = 0
        native = native_step(shape, pages, variant, threads)
        assert torch.equal(logits_of(native, sequence, cuts, others), alone)


def test_leftovers_of_another_sequence_do_not_leak(variant: Variant) -> None:
    """A sequence that overflowed leaves NaN in its blocks; whoever gets the blocks next must not see them."""
    shape = Shape(vocab=64)
    weights = random_decoder(shape)
    weights.embedding[63] = torch.inf
    pages = Pages(weights)
    native = NativeStep(weights, pages.pool, BLOCKS, 8, 2, library=library_of(variant))
    fresh = NativeStep(weights, pages.pool, BLOCKS, 8, 2, library=library_of(variant))
    blocks = [5, 3]
    poisoned = Sequence_([63] * 32, blocks)
    assert native.step(Batcher.step([(poisoned, 32)])).isnan().all()
    for cuts in ([21], [1] * 21, [8, 13]):
        sequence = Sequence_(list(range(21)), blocks)
        steps = [Batcher.step([(sequence, count)], all_logits=True) for count in cuts]
        for inputs in steps:
            ours = native.step(inputs)
            assert ours.isfinite().all()
            assert torch.equal(ours, fresh.step(inputs))
        native.step(Batcher.step([(Sequence_([63] * 32, blocks), 32)]))


def test_a_neighbour_that_overflows_does_not_leak(variant: Variant) -> None:
    shape = Shape(vocab=64)
    weights = random_decoder(shape)
    weights.embedding[63] = torch.inf
    native = NativeStep(weights, Pages(weights).pool, BLOCKS, 8, 2, library=library_of(variant))
    batch = Batcher(BLOCKS, 60)
    good, bad = batch.sequence(40), Sequence_([63] * 40, batch.sequence(40).blocks)
    alone = native.step(batch.step([(good, 40)])).clone()
    good.done = 0
    both = native.step(batch.step([(bad, 40), (good, 40)]))
    assert torch.equal(both[1], alone[0])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_ids", 101, "token id"),
        ("token_ids", -1, "token id"),
        ("positions", 1024, "position"),
        ("slots", BLOCKS * 16, "slot"),
        ("block_tables", BLOCKS, "block"),
        ("context", 33, "disagree"),
        ("query_start", 1, "disagree"),
        ("logits_rows", 4, "logits row"),
    ],
)
def test_indices_outside_are_refused(field: str, value: int, said: str) -> None:
    shape = Shape()
    native = native_step(shape, Pages(random_decoder(shape)), usable_variants()[0])
    sequence = Batcher(BLOCKS, shape.vocab).sequence(20)
    Batcher.step([(sequence, 16)])
    inputs = Batcher.step([(sequence, 4)])
    getattr(inputs, field).flat[0] = value
    with pytest.raises(ValueError, match=said):
        native.step(inputs)


def test_what_is_unsupported_is_said() -> None:
    weights = random_decoder(Shape())
    assert NativeStep.unsupported(weights) is None
    assert "head size 24" in str(NativeStep.unsupported(random_decoder(Shape(head_dim=24))))
    assert "multiples of 16" in str(NativeStep.unsupported(random_decoder(Shape(hidden=72))))
