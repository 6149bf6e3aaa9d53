"""Shapes of random decoders that between them have every feature of the native step, and that step on one."""

from __future__ import annotations

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from tests.support.kernel_cases import Pages, Shape, library_of, random_decoder

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
    "experts in some layers": Shape(
        experts=6, routed=(False, True, False), layers=3, intermediate=160, expert_intermediate=48
    ),
    "many experts, shares as they are": Shape(
        experts=40, chosen=7, normalized=False, intermediate=32, gelu=True, post_norms=True
    ),
}
FEATURES = tuple(SHAPES)[-7:]


def native_step(shape: Shape, pages: Pages, variant: Variant, threads: int = 2) -> NativeStep:
    """A step of one level, with room for :data:`BLOCKS` blocks."""
    return NativeStep(random_decoder(shape), pages.pool, BLOCKS, 8, threads, library=library_of(variant))
