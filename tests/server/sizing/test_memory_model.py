"""The memory model: against allocations on the meta device, for bases of 1 to 70 billion parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import MixtralConfig

from manylora.adapters.training.model.loading import meta_model
from manylora.server.errors import ConfigError
from manylora.server.kernels.buffers import sent
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import DecoderWeights, LayerWeights
from manylora.server.sizing.division import Demand, Division, Wanted, divide
from manylora.server.sizing.fits import Serving
from manylora.server.sizing.shape import BaseShape
from manylora.server.sizing.step import (
    StepSize,
    chunk_bytes,
    probe_bytes,
    replayed_scratch_bytes,
    reserved_bytes,
    scratch_bytes,
    step_bytes,
)
from tests.support import sizing_section
from tests.support.counted_memory import CountedMemory
from tests.support.simulated_device import simulated_cuda
from tests.support.usual_bases import CONFIGS, PARAMETERS

GIB = 1 << 30


@cache
def shape_of(name: str) -> BaseShape:
    return BaseShape.of(CONFIGS[name], meta_model(CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_the_models(name: str) -> None:
    shape = shape_of(name)
    assert shape.parameters == pytest.approx(PARAMETERS[name], rel=0.002)
    assert shape.weight_bytes("bf16") == 2 * shape.parameters
    assert shape.weight_bytes("fp32") == 4 * shape.parameters
    assert shape.weight_bytes("nf4") < shape.weight_bytes("int8") < shape.weight_bytes("bf16")
    assert shape.head_dim * shape.heads == shape.width


def test_experts_that_a_row_takes_count_and_all_are_loaded() -> None:
    config = MixtralConfig(num_hidden_layers=2, vocab_size=1000)
    shape = BaseShape.of(config, meta_model(config))
    assert shape.inner == 2 * config.intermediate_size
    assert shape.parameters > 2 * 8 * 3 * config.intermediate_size * config.hidden_size


class NoAttention:
    """Attention that takes no memory beside its output: its scratch has a formula of its own."""

    def attend(self, kv: object, query: torch.Tensor, out: torch.Tensor, scoring: object) -> None:
        del kv, query, out, scoring


def fake_weights(shape: BaseShape, dtype: torch.dtype, context: int) -> DecoderWeights:
    """Two layers of a base on a card that is not there: every layer has the same in use at a time."""

    def matrix(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device="cuda")

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = LayerWeights(
        input_norm=matrix(shape.width), qkv=matrix(q + 2 * kv, shape.width), qkv_bias=None, q_norm=None,
        k_norm=None, o=matrix(shape.width, q), o_bias=None, post_norm=matrix(shape.width),
        gate_up=matrix(2 * shape.inner, shape.width), gate_up_bias=None,
        down=matrix(shape.width, shape.inner), down_bias=None, window=None,
    )  # fmt: skip
    ropes = torch.empty(1, context, shape.head_dim // 2, device="cuda")
    return DecoderWeights(
        embedding=matrix(shape.vocabulary, shape.width), layers=(layer, layer),
        final_norm=matrix(shape.width), lm_head=matrix(shape.vocabulary, shape.width), cos=ropes,
        sin=ropes, n_heads=shape.heads, n_kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        intermediate=shape.inner, eps=1e-5, scale=1.0,
    )  # fmt: skip


def counted_step(patch: pytest.MonkeyPatch, shape: BaseShape, dtype: torch.dtype, size: StepSize) -> int:
    """Bytes that the reference step takes at its peak, tokens drawn by sorting included."""
    with CountedMemory() as counted, simulated_cuda(patch, "meta"), torch.inference_mode():
        weights = fake_weights(shape, dtype, size.context)
        step = ReferenceStep(
            weights,
            torch.empty(1024, dtype=dtype, device="cuda"),
            4,
            attention=lambda inputs, device: AttentionPlan(sent(inputs.slots, device), [NoAttention()]),
        )
        rows = np.arange(size.rows)
        inputs = StepInputs(
            token_ids=rows * 0, positions=rows * 0, slots=rows * 0,
            query_start=np.arange(size.rows + 1, dtype=np.int32), context=np.ones(size.rows, np.int32),
            block_tables=np.zeros((size.rows, 1), np.int32), logits_rows=rows[: size.sequences], lora=None,
        )  # fmt: skip
        before = counted.now
        counted.peak = before
        logits = step.step(inputs)
        values, _ = torch.sort(logits.float(), dim=-1, descending=True)
        values.softmax(-1).cumsum(-1)
        return int(counted.peak - before)


SIZES = {
    "prompts": StepSize(2048, 32, 8192, 0),
    "answers": StepSize(256, 256, 8192, 0),
    "both": StepSize(2048, 256, 32_768, 0),
    "wide": StepSize(8192, 256, 131_072, 0),
}


OFTEN = ("8B", torch.bfloat16)  # the others are a sweep
COUNTED = [
    pytest.param(name, size, dtype, marks=() if (name, dtype) == OFTEN else pytest.mark.sweep)
    for name in CONFIGS
    for size in SIZES
    for dtype in (torch.bfloat16, torch.float32)
]


@pytest.mark.parametrize(("name", "size", "dtype"), COUNTED)
def test_a_step_takes_what_is_counted(
    monkeypatch: pytest.MonkeyPatch, name: str, size: str, dtype: torch.dtype
) -> None:
    shape = shape_of(name)
    counted = counted_step(monkeypatch, shape, dtype, SIZES[size])
    said = step_bytes(shape, dtype.itemsize, SIZES[size]) - scratch_bytes(shape, SIZES[size])
    assert counted <= said <= 1.6 * counted, f"{counted / GIB:.2f} GiB counted, {said / GIB:.2f} GiB computed"


@pytest.mark.parametrize("context", [1, 128, 129, 700, 4096, 32_768, 131_072, 1_000_000])
def test_the_scratch_of_attention_is_what_the_kernels_take(context: int) -> None:
    attention = pytest.importorskip("manylora.server.kernels.cuda.attention", reason="needs Triton")
    buckets = pytest.importorskip("manylora.server.kernels.cuda.replay.buckets", reason="needs Triton")
    shape, size = shape_of("8B"), StepSize(2048, 256, context)
    said = scratch_bytes(shape, size)
    assert said == attention.scratch_bytes(256, context, shape.heads, shape.head_dim)
    bucket = buckets.bucket_for(256, context)
    replayed = attention.scratch_bytes(256, bucket.partitions * 128, shape.heads, shape.head_dim)
    assert said <= replayed <= replayed_scratch_bytes(shape, size)


@pytest.mark.parametrize("context", [128, 4096, 32_768, 131_072, 1_000_000])
def test_the_scratch_of_attention_is_bounded(context: int) -> None:
    """It was rows * heads * partitions * head size, 2 GiB and more at 128k."""
    assert scratch_bytes(shape_of("8B"), StepSize(2048, 256, context)) <= 256 * 32 * 32 * 130 * 4
    assert reserved_bytes(shape_of("8B"), 2, StepSize(2048, 256, context)) < 3 * GIB


def test_deterministic_steps_have_room_for_a_tile_of_each_row_that_decodes() -> None:
    fixed = pytest.importorskip("manylora.server.kernels.cuda.fixed.buckets", reason="needs Triton")
    shape, usual = shape_of("8B"), StepSize(2048, 256, 8192)
    size = replace(usual, deterministic=True)
    bucket = fixed.FixedBucket(512)
    lines = 16 * (-(-bucket.rows // 16) + bucket.sequences)
    for parts, width in ((1, shape.inner), (3, shape.width)):
        assert lines * 256 * parts * 4 * -(-width // 1024) < chunk_bytes(shape, 2, size)
    assert 0 < chunk_bytes(shape, 2, size) - chunk_bytes(shape, 2, usual) < GIB
    assert (
        abs(reserved_bytes(shape, 2, size) - reserved_bytes(shape, 2, usual)) < GIB
    )  # it draws fewer rows at a time


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e4])  # the last is flat: all tokens have to be looked at
@pytest.mark.parametrize("count", [8, 80])
def test_drawing_in_whole_numbers_takes_what_is_counted(count: int, temperature: float) -> None:
    drawing = pytest.importorskip("manylora.server.kernels.cuda.fixed.drawing", reason="needs Triton")
    vocabulary = 4096
    logits = torch.randn((count, vocabulary), generator=torch.Generator().manual_seed(0)).bfloat16()
    halves = np.arange(count) % 2 == 0
    draws = Draws(
        logits,
        temperature=np.full(count, temperature, np.float32),
        top_k=np.zeros(count, np.int64),
        top_p=np.where(halves, 0.95, 1.0),
        min_p=np.zeros(count, np.float32),
        uniform=np.linspace(0.01, 0.99, count),
        replaced={},
        allowed={},
    )
    with CountedMemory("cpu") as counted:
        drawing.draw(draws)
    shape = replace(shape_of("8B"), vocabulary=vocabulary)
    sizes = [StepSize(1, sequences, 1, deterministic=True) for sequences in (count, 0)]
    said = step_bytes(shape, 0, sizes[0]) - step_bytes(shape, 0, sizes[1])
    assert counted.peak <= said + 4096 * count  # vectors of the rows and indices


DEMAND = Demand(step=GIB, block=1 << 20, context=4096, sequences=8, merged_copy=4 * GIB)


@pytest.mark.parametrize(
    ("free", "wanted", "expected"),
    [
        (41, Wanted(), (2048, 7.75, 7.75)),  # as many blocks as all sequences could use
        (5, Wanted(), (2048, 0.9, 0)),  # no share for copies of which none would fit
        (5, Wanted(kv=GIB), (1024, 0.7, 0)),
        (5, Wanted(adapters=GIB), (2048, 1, 0)),
        (5, Wanted(merged=2 * GIB), (1417, 0.46, 2)),
        (41, Wanted(kv=8 * GIB, adapters=20 * GIB, merged=0), (2048, 20, 0)),
        (2, Wanted(), (720, 0.235, 0)),
    ],
)
def test_who_gets_what(free: int, wanted: Wanted, expected: tuple[int, float, float]) -> None:
    demand = Demand(**{**vars(DEMAND), "wanted": wanted})
    found = divide(free * GIB, demand)
    blocks, adapters, merged = expected
    assert found.num_blocks - 1 == pytest.approx(blocks, rel=0.05)
    assert found.adapters / GIB == pytest.approx(adapters, rel=0.1)
    assert found.merged / GIB == pytest.approx(merged, rel=0.2)
    taken = (found.num_blocks - 1) * demand.block + found.adapters + found.merged + found.step
    assert taken <= free * GIB, "nothing is given twice"


@pytest.mark.parametrize(
    ("free", "wanted"),
    [(0.9, Wanted()), (1.0, Wanted()), (8, Wanted(kv=8 * GIB)), (3, Wanted(kv=GIB, adapters=GIB)),
     (3, Wanted(kv=1000))],
)  # fmt: skip
def test_what_is_too_small_says_what_would_do(free: float, wanted: Wanted) -> None:
    with pytest.raises(ConfigError, match=r"--max-batch-tokens.*estimate serve"):
        divide(int(free * GIB), Demand(**{**vars(DEMAND), "wanted": wanted}))


def serving(name: str, form: str = "bf16", context: int = 8192) -> Serving:
    return Serving(shape_of(name), form, StepSize(2048, 256, context, 16), 16)


FITS = [  # base, format, the smallest of the usual cards that it fits; None: none of them
    ("1B", "bf16", 16), ("3B", "bf16", 16), ("8B", "bf16", 24), ("8B", "nf4", 16), ("8B", "int8", 16),
    ("14B", "bf16", 48), ("14B", "nf4", 16), ("70B", "bf16", None), ("70B", "int8", 80),
    ("70B", "nf4", 48),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "card"), FITS)
def test_bases_and_cards(name: str, form: str, card: int | None) -> None:
    made = serving(name, form)
    fitting = [size for size in (16, 24, 48, 80) if made.on(size * GIB) is not None]
    assert next(iter(fitting), None) == card
    smallest = made.smallest()
    assert made.on(smallest) is not None
    assert made.on(smallest - (256 << 20)) is None


def divisions() -> Iterator[tuple[Serving, int, Division]]:
    for name in CONFIGS:
        for form in ("bf16", "int8", "nf4", "fp32"):
            for context in (2048, 8192, 32_768, 131_072):
                made = serving(name, form, context)
                for card in (16, 24, 48, 80):
                    found = made.on(card * GIB)
                    if found is not None:
                        yield made, card * GIB, found


@pytest.mark.sweep
def test_no_card_is_promised_more_than_it_has() -> None:
    """For every base, format, context and card all parts together, steps included, are below its size."""
    seen = 0
    for made, card, found in divisions():
        blocks = found.num_blocks * made.shape.block_bytes(made.form)
        needed = max(
            reserved_bytes(made.shape, 2 if made.form != "fp32" else 4, made.size), probe_bytes(made.shape)
        )
        assert found.step >= needed
        assert made.weights + blocks + found.adapters + found.merged + found.step < card
        assert found.tokens >= made.size.context
        assert found.tokens % BLOCK_SIZE == 0
        seen += 1
    assert seen > 100


def test_the_page_says_what_the_code_says() -> None:
    assert sizing_section.SECTION.text() == sizing_section.table(), (
        "run python -m tests.support.sizing_section"
    )
