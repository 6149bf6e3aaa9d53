"""Triton kernel of paged prompt attention; ``prompts.py`` launches it.

Rows of one sequence read the same keys, and so do the query heads of a group: a program takes as many rows
times heads as fill its tile, and goes through the blocks of their context once, with one running softmax a
row (flash attention). Keys and values are read in place, and what a row may see is computed from its
position: nothing is gathered, and there is no mask in memory.

Steps of ``TOKENS`` begin at multiples of it, and steps that show a row nothing leave its sums as they are:
a row has the same bits however its prompt is cut into chunks.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["window"])
def attend_chunks(
    query,  # [T, heads, KEY_DIM], rows query_stride apart
    query_stride,
    keys,  # [slots, kv heads, KEY_DIM]
    values,  # [slots, kv heads, VALUE_DIM]
    work,  # [n, 4] first row, last row + 1, position of the first row, where the numbers of its blocks begin
    blocks,
    out,  # [T, heads, VALUE_DIM]
    scale,
    window,
    softcap,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each tile of rows, KV head and chunk; the last rows, which have most to do, first.

    Rows at positions below zero see nothing: their output is zero.
    """
    tile, head, item = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    ROWS: tl.constexpr = TILE // GROUP
    begin = tl.load(work + 4 * item)
    first = begin + tile * ROWS
    count = tl.minimum(tl.load(work + 4 * item + 1) - first, ROWS)
    if count > 0:
        position = tl.load(work + 4 * item + 2) + tile * ROWS
        table = blocks + tl.load(work + 4 * item + 3)
        m, d, e = tl.arange(0, TILE), tl.arange(0, KEY_TILE), tl.arange(0, VALUE_TILE)
        line = m // GROUP
        real = line < count
        at = position + line
        row = (first + line).to(tl.int64)
        query_head = head * GROUP + m % GROUP
        q = tl.load(
            query + (row * query_stride + query_head * KEY_DIM)[:, None] + d[None, :],
            mask=real[:, None] & (d < KEY_DIM)[None, :],
            other=0.0,
        )
        highest = tl.full([TILE], float("-inf"), tl.float32)
        sums = tl.zeros([TILE], tl.float32)
        mixed = tl.zeros([TILE, VALUE_TILE], tl.float32)
        last = position + count
        for step in range(tl.maximum(position - window + 1, 0) // TOKENS * TOKENS, last, TOKENS):
            t = step + tl.arange(0, TOKENS)
            there = t < last
            block = tl.load(table + t // BLOCK, mask=there, other=0).to(tl.int64)
            slot = ((block * BLOCK + t % BLOCK) * kv_heads + head)[:, None]
            k = tl.load(
                keys + slot * KEY_DIM + d[None, :], mask=there[:, None] & (d < KEY_DIM)[None, :], other=0.0
            )
            scores = tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision="ieee") * scale
            if SOFTCAP:
                scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # softcap * tanh
            seen = (t[None, :] <= at[:, None]) & (t[None, :] > at[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            base = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that has seen nothing yet
            shrunk = tl.exp(highest - base)
            p = tl.exp(scores - base[:, None])
            v = tl.load(
                values + slot * VALUE_DIM + e[None, :],
                mask=there[:, None] & (e < VALUE_DIM)[None, :],
                other=0.0,
            )
            p_rounded = p.to(values.dtype.element_ty).to(DOT)
            mixed = tl.dot(p_rounded, v.to(DOT), mixed * shrunk[:, None], input_precision="ieee")
            sums = sums * shrunk + tl.sum(p, axis=1)
            highest = higher
        result = mixed / tl.where(sums > 0, sums, 1.0)[:, None]
        heads = kv_heads * GROUP
        # Where rows go is computed anew: kept throughout the loop it would take registers that that wants.
        line = at - tl.load(work + 4 * item + 2, volatile=True) - tile * ROWS
        real = line < count
        row = (first + line).to(tl.int64)
        query_head = head * GROUP + m - line * GROUP
        tl.store(
            out + ((row * heads + query_head) * VALUE_DIM)[:, None] + e[None, :],
            result.to(out.dtype.element_ty),
            mask=real[:, None] & (e < VALUE_DIM)[None, :],
        )
