"""Random decoders, adapters and batches for the parity tests of kernel backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import torch

from manylora.server.cache_directory import cache_directory
from manylora.server.kernels.cpu.build import AMX_EMULATED, Variant, usable_variants
from manylora.server.kernels.cpu.library import AHEAD_OF_TIME, Library, find_library
from manylora.server.kernels.inputs import (
    BLOCK_SIZE,
    AdapterPages,
    ModuleShape,
    StepInputs,
    VectorPages,
    lora_inputs,
    page_length,
)
from manylora.server.kernels.reference.step import ReferenceStep, expert_shapes, norm_shapes, target_shapes
from manylora.server.kernels.weights import GELU_TANH, SILU, DecoderWeights, Experts, LayerWeights

Mix = tuple[tuple[AdapterPages, float], ...]


@dataclass(frozen=True)
class Shape:
    """Sizes and features of a random decoder."""

    hidden: int = 64
    intermediate: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 101
    layers: int = 2
    bias: bool = False
    qk_norm: bool = False
    joint_qk_norm: bool = False  # of all heads together
    pre_norms: bool = True
    post_norms: bool = False
    windows: tuple[int | None, ...] = (None,)  # of the layers, repeated
    ropes: tuple[int | None, ...] = (0,)  # tables of the layers, repeated
    turned: int | None = None  # dimensions of a head that turn; None: all
    positions: int = 1024
    stacked: bool = False  # q, k and v are one module, gate and up another
    gelu: bool = False
    experts: int = 0  # in place of the MLP
    routed: tuple[bool, ...] = (True,)  # which layers have them, repeated
    expert_intermediate: int | None = None  # None: as wide as an MLP
    chosen: int = 2
    normalized: bool = True
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    score_cap: float | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None


def random_decoder(shape: Shape, seed: int = 0) -> DecoderWeights:
    """A decoder whose logits depend on every part: weights are scaled so that activations stay near 1."""
    torch.manual_seed(seed)

    def matrix(out: int, inputs: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(out, inputs).mul(gain * inputs**-0.5).bfloat16()

    def vector(size: int, there: bool = True) -> torch.Tensor | None:
        weight = (1 - shape.norm_offset + 0.3 * torch.randn(size)).bfloat16()
        return weight if there else None

    def bias(size: int) -> torch.Tensor | None:
        return (0.3 * torch.randn(size)).bfloat16() if shape.bias else None

    inner = (shape.expert_intermediate or shape.intermediate) if shape.experts else 0
    routed = [shape.experts > 0 and shape.routed[i % len(shape.routed)] for i in range(shape.layers)]

    def experts() -> Experts:
        count = range(shape.experts)
        return Experts(
            matrix(shape.experts, shape.hidden, 2.0),
            torch.stack([matrix(2 * inner, shape.hidden) for _ in count]),
            torch.stack([matrix(shape.hidden, inner, 1.5) for _ in count]),
        )

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layers = tuple(
        LayerWeights(
            input_norm=vector(shape.hidden, shape.pre_norms),
            qkv=matrix(q + 2 * kv, shape.hidden, 1.5),
            qkv_bias=bias(q + 2 * kv),
            q_norm=vector(q if shape.joint_qk_norm else shape.head_dim, shape.qk_norm),
            k_norm=vector(kv if shape.joint_qk_norm else shape.head_dim, shape.qk_norm),
            o=matrix(shape.hidden, q),
            o_bias=bias(shape.hidden),
            post_norm=vector(shape.hidden, shape.pre_norms),
            gate_up=None if routed[i] else matrix(2 * shape.intermediate, shape.hidden),
            gate_up_bias=None if routed[i] else bias(2 * shape.intermediate),
            down=None if routed[i] else matrix(shape.hidden, shape.intermediate),
            down_bias=None if routed[i] else bias(shape.hidden),
            window=shape.windows[i % len(shape.windows)],
            attention_norm=vector(shape.hidden, shape.post_norms),
            mlp_norm=vector(shape.hidden, shape.post_norms),
            rope=shape.ropes[i % len(shape.ropes)],
            experts=experts() if routed[i] else None,
        )
        for i in range(shape.layers)
    )
    half = (shape.turned or shape.head_dim) // 2
    angles = torch.stack(
        [
            torch.outer(torch.arange(shape.positions).float(), base ** (-torch.arange(half) / half))
            for base in (10000.0, 100.0)
        ]
    )
    final_norm = vector(shape.hidden)
    assert final_norm is not None
    return DecoderWeights(
        embedding=torch.randn(shape.vocab, shape.hidden).bfloat16(),
        layers=layers,
        final_norm=final_norm,
        lm_head=matrix(shape.vocab, shape.hidden),
        cos=angles.cos(),
        sin=angles.sin(),
        n_heads=shape.heads,
        n_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        eps=1e-5,
        scale=shape.head_dim**-0.5,
        stacked=frozenset(("qkv", "gate_up")) if shape.stacked else frozenset(),
        activation=GELU_TANH if shape.gelu else SILU,
        norm_offset=shape.norm_offset,
        embedding_scale=shape.embedding_scale,
        residual_scale=shape.residual_scale,
        score_cap=shape.score_cap,
        logit_scale=shape.logit_scale,
        logit_cap=shape.logit_cap,
        expert_intermediate=inner,
        chosen_experts=shape.chosen if shape.experts else 0,
        normalized_shares=shape.normalized,
    )


def in_float32(weights: DecoderWeights) -> DecoderWeights:
    """A decoder with the numbers of ``weights``, computed with in fp32."""
    return in_type(torch.float32, weights)


def in_type(dtype: torch.dtype, weights: DecoderWeights) -> DecoderWeights:
    """A decoder with the numbers of ``weights``, computed with in ``dtype``; rotary tables are float32."""
    changed = _converted(weights, lambda tensor: tensor.to(dtype))
    return replace(changed, cos=weights.cos, sin=weights.sin)


def on(device: torch.device, weights: DecoderWeights) -> DecoderWeights:
    """A copy of a decoder's weights on a device."""
    return _converted(weights, lambda tensor: tensor.to(device))


def _converted(weights: DecoderWeights, change: Callable[[torch.Tensor], torch.Tensor]) -> DecoderWeights:
    def new(value: object) -> object:
        if isinstance(value, Experts):
            return Experts(*(change(tensor) for tensor in vars(value).values()))
        return change(value) if isinstance(value, torch.Tensor) else value

    layers = tuple(LayerWeights(**{k: new(v) for k, v in vars(layer).items()}) for layer in weights.layers)  # type: ignore[arg-type]
    changed = {field.name: new(getattr(weights, field.name)) for field in fields(weights)}
    return DecoderWeights(**{**changed, "layers": layers})  # type: ignore[arg-type]


VECTORS = ("gc", "g", "", "i", "gi", "c", "gci")  # of q, k, v, o, gate, up, down
CHANGES = ("m", "gm", "", "m", "m", "cm", "gim")
MIXED_INPUTS = ("b", "i", "gb", "", "bi", "cb", "bp")
BLOCK = 32  # inputs of one, which divides not all widths
PAIRS = ("gp", "p", "", "gp", "gp", "gp", "p")


class Pages:
    """A pool of rank pages that adapters are written to one after the other."""

    def __init__(self, weights: DecoderWeights, elements: int = 1 << 22) -> None:
        self.pool = torch.zeros(elements, dtype=torch.bfloat16)
        self._shapes = target_shapes(weights)
        self._norms = norm_shapes(weights)
        self._experts = expert_shapes(weights)
        self._next = page_length(max(max(s.in_features, s.out_features) for s in self._shapes))

    @property
    def used(self) -> int:
        """Elements written so far; nothing behind them may be read."""
        return self._next

    def random(
        self,
        rank: int | Sequence[int],
        seed: int,
        strength: float = 1.0,
        vectors: Sequence[str] | None = None,
        experts: int = 0,
    ) -> AdapterPages:
        """An adapter of that rank in every module, or of ``rank[m % len(rank)]`` in module m.

        ``vectors``, repeated likewise, say by letters which of gain, constant, input gain, matrix ("m"),
        partners and blocks of inputs module m has. With vectors it changes two norms of three as well.
        ``experts`` is the rank at every third product of an expert, one more at the others.
        """
        generator = torch.Generator().manual_seed(seed)
        ranks = [rank] * 7 if isinstance(rank, int) else list(rank)
        offsets, all_ranks = [], []
        tables = {
            letter: np.zeros(len(self._shapes) + len(self._norms) + len(self._experts), np.int64)
            for letter in "gcimpb"
        }
        for module, shape in enumerate(self._shapes):
            r = ranks[module % len(ranks)]
            all_ranks.append(r)
            offsets.append(self._next if r else 0)
            self._write_factors(shape, r, strength, generator)
            for letter in vectors[module % len(vectors)] if vectors is not None else "":
                tables[letter][module] = self._next
                width = shape.out_features if letter in "gcp" else shape.in_features
                rows, size = (shape.out_features, width**-0.5) if letter == "m" else (1, 0.3)
                if letter == "b":
                    rows, width, size = width, BLOCK, BLOCK**-0.5
                self._write(size * strength * torch.randn(rows, width, generator=generator))
        distance = np.zeros_like(tables["p"])
        for module in np.flatnonzero(tables["p"]).tolist():
            half = self._shapes[module].out_features // 2
            distance[module] = half if (module + seed) % 2 else next(d for d in (8, 4, 2, 1) if half % d == 0)
        for norm, shape in enumerate(self._norms):
            if vectors is not None and (norm + seed) % 3:
                tables["g"][len(self._shapes) + norm] = self._next
                self._write(0.3 * torch.randn(1, shape.out_features, generator=generator))
        none = [0] * len(self._norms)
        own = [experts + (i % 3 > 0) if experts else 0 for i in range(len(self._experts))]
        starts = []
        for shape, r in zip(self._experts, own, strict=True):
            starts.append(self._next if r else 0)
            self._write_factors(shape, r, strength, generator)
        return AdapterPages(
            f"{seed:08x}",
            np.array([*offsets, *none, *starts], np.int64),
            np.array([*all_ranks, *none, *own], np.int32),
            vectors=None
            if vectors is None
            else VectorPages(*[*tables.values(), distance, np.full_like(distance, BLOCK)]),
        )

    def _write_factors(
        self, shape: ModuleShape, rank: int, strength: float, generator: torch.Generator
    ) -> None:
        self._write(torch.randn(rank, shape.in_features, generator=generator) * shape.in_features**-0.5)
        size = strength * max(rank, 1) ** -0.5
        self._write(torch.randn(rank, shape.out_features, generator=generator) * size)

    def _write(self, rows: torch.Tensor) -> None:
        length = page_length(rows.shape[1])
        end = self._next + rows.shape[0] * length
        assert end <= len(self.pool)
        self.pool[self._next : end].view(-1, length)[:, : rows.shape[1]] = rows.bfloat16()
        self._next = end


@dataclass
class Sequence_:
    """A sequence under test: its tokens, its blocks and how far it has been computed."""

    tokens: list[int]
    blocks: list[int]
    mix: Mix = ()
    done: int = 0


class Batcher:
    """Builds steps over sequences; their blocks are scattered over the cache."""

    def __init__(self, num_blocks: int, vocab: int, seed: int = 0, *, first: int = 0) -> None:
        """``first`` is the lowest of the blocks; the engine's is 1."""
        self._random = np.random.default_rng(seed)
        self._free = [int(b) for b in self._random.permutation(num_blocks) if b >= first]
        self._vocab = vocab

    def sequence(self, length: int, mix: Mix = ()) -> Sequence_:
        """A sequence of random tokens, with the blocks that all of them take."""
        tokens = [int(t) for t in self._random.integers(0, self._vocab, length)]
        return Sequence_(tokens, [int(self._free.pop()) for _ in range(-(-length // BLOCK_SIZE))], mix)

    @staticmethod
    def step(work: Sequence[tuple[Sequence_, int]], all_logits: bool = False) -> StepInputs:
        """One step that computes the next ``n`` tokens of each (sequence, n), and marks them done."""
        tokens, positions, slots, starts, contexts, wanted = [], [], [], [0], [], []
        for sequence, count in work:
            span = range(sequence.done, sequence.done + count)
            tokens += [sequence.tokens[p] for p in span]
            positions += list(span)
            slots += [sequence.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span]
            starts.append(len(tokens))
            contexts.append(span.stop)
            wanted += list(range(starts[-2], starts[-1])) if all_logits else [len(tokens) - 1]
            sequence.done += count
        width = max(len(sequence.blocks) for sequence, _ in work)
        tables = np.zeros((len(work), width), np.int32)
        for i, (sequence, _) in enumerate(work):
            tables[i, : len(sequence.blocks)] = sequence.blocks
        return StepInputs(
            token_ids=np.array(tokens, np.int64),
            positions=np.array(positions, np.int64),
            slots=np.array(slots, np.int64),
            query_start=np.array(starts, np.int32),
            context=np.array(contexts, np.int32),
            block_tables=tables,
            logits_rows=np.array(wanted, np.int64),
            lora=lora_inputs([sequence.mix for sequence, _ in work]),
        )


def variants_under_test() -> tuple[Variant, ...]:
    """What this machine can run, and level amx in its emulation: what tests of all levels go through."""
    return (*usable_variants(), AMX_EMULATED)


@cache
def library_of(variant: Variant) -> Library:
    """The kernels for one instruction set, compiled where this machine has not yet."""
    return find_library((variant,), AHEAD_OF_TIME, cache_directory("kernels"))


def oracle(weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> ReferenceStep:
    """The reference in fp32: what the exact arithmetic on these bf16 weights gives."""
    return ReferenceStep(in_float32(weights), pool.float(), num_blocks)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of the expected values."""
    actual, expected = actual.float(), expected.float()
    return float((actual - expected).norm() / expected.norm())


def rounding_slack() -> float:
    """How much more than PyTorch a Triton kernel may err in bf16: its interpreter rounds towards zero."""
    return 1.2 if torch.cuda.is_available() else 2.4
