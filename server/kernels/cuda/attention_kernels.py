"""Triton kernels of paged decode attention; ``attention.py`` launches them.

One query row against all it has in the cache is too little work for one program when contexts are long,
so what it sees is cut into partitions (flash decoding), each with its own softmax: its peak score, its sum
of exponentials and its weighted values. A second kernel joins them. A row has at most ``MOST`` partitions:
where that many of the least size do not reach, theirs is doubled until they do. So the size depends on the
row's own context and never on the batch: a row has the same bits beside any others. And what partitions
leave for the second kernel is bounded, however long contexts are.

The query heads of a group share K and V, so a program takes all heads of one group and reads each key
once; the group is filled up to the 16 rows that the tensor cores take. That wastes products, which are
not what decode attention waits for.
"""

import triton
import triton.language as tl


@triton.jit
def seen_by(length, window, TOKENS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """Of a row that is the last of ``length`` tokens: the first it sees, where its partitions begin,
    and the size of each."""
    earliest = tl.maximum(length - window, 0)
    begin = earliest // TOKENS * TOKENS
    size = LEAST
    for _ in tl.static_range(15):  # enough for a hundred million tokens
        size = tl.where(size * MOST < length - begin, size * 2, size)
    return earliest, begin, size


@triton.jit(do_not_specialize=["table_width", "partitions", "window"])
def attend_partition(
    query,  # [T, heads, KEY_DIM], rows query_stride apart
    query_stride,
    keys,  # [slots, kv heads, KEY_DIM]
    values,  # [slots, kv heads, VALUE_DIM]
    rows,  # [n] the query row
    context,  # [n] tokens it sees, itself included; 0: none, the row is padding
    blocks,  # [n, table_width]
    table_width,
    partitions,
    peak,  # [n, heads, partitions] float32
    total,  # [n, heads, partitions] float32
    weighted,  # [n, heads, partitions, VALUE_DIM] float32
    scale,
    window,
    softcap,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,  # of these, taken together
    BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each row, KV head and partition. Those a row does not reach write nothing."""
    item, head, partition = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    length = tl.load(context + item)
    earliest, begin, size = seen_by(length, window, TOKENS, LEAST, MOST)
    first = begin + partition * size
    last = tl.minimum(first + size, length)
    if first < last:
        g, d, e = tl.arange(0, GROUP_TILE), tl.arange(0, KEY_TILE), tl.arange(0, VALUE_TILE)
        row = tl.load(rows + item).to(tl.int64)
        q = tl.load(
            query + row * query_stride + (head * GROUP + g)[:, None] * KEY_DIM + d[None, :],
            mask=(g < GROUP)[:, None] & (d < KEY_DIM)[None, :],
            other=0.0,
        )
        highest = tl.full([GROUP_TILE], float("-inf"), tl.float32)
        sums = tl.zeros([GROUP_TILE], tl.float32)
        mixed = tl.zeros([GROUP_TILE, VALUE_TILE], tl.float32)
        for at in range(tl.maximum(first, earliest // STEP * STEP), last, STEP):
            t = at + tl.arange(0, STEP)
            seen = (t < last) & (t >= earliest)  # at least one: every peak is a number
            block = tl.load(blocks + item * table_width + t // BLOCK, mask=seen, other=0).to(tl.int64)
            slot = ((block * BLOCK + t % BLOCK) * kv_heads + head)[:, None]
            k = tl.load(
                keys + slot * KEY_DIM + d[None, :], mask=seen[:, None] & (d < KEY_DIM)[None, :], other=0.0
            )
            scores = tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision="ieee") * scale
            if SOFTCAP:
                scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # softcap * tanh
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            shrunk = tl.exp(highest - higher)
            p = tl.exp(scores - higher[:, None])
            v = tl.load(
                values + slot * VALUE_DIM + e[None, :],
                mask=seen[:, None] & (e < VALUE_DIM)[None, :],
                other=0.0,
            )
            p_rounded = p.to(values.dtype.element_ty).to(DOT)
            mixed = tl.dot(p_rounded, v.to(DOT), mixed * shrunk[:, None], input_precision="ieee")
            sums = sums * shrunk + tl.sum(p, axis=1)
            highest = higher
        heads = (item * kv_heads + head) * GROUP + g
        place = heads.to(tl.int64) * partitions + partition
        tl.store(peak + place, highest, mask=g < GROUP)
        tl.store(total + place, sums, mask=g < GROUP)
        tl.store(
            weighted + place[:, None] * VALUE_DIM + e[None, :],
            mixed,
            mask=(g < GROUP)[:, None] & (e < VALUE_DIM)[None, :],
        )


@triton.jit
def joined(
    peak,
    total,
    weighted,
    place,  # of the head's first partition
    length,
    window,
    e,  # [tile] the elements of a value
    inside,  # [tile] which of them there are
    VALUE_DIM: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The attention [tile] float32 of one head of a row of that many tokens; zeros if it sees nothing.

    All partitions are taken at once, whether a row has them or not: the order of the sum is always the same.
    """
    _, begin, size = seen_by(length, window, TOKENS, LEAST, MOST)
    p = tl.arange(0, MOST)
    used = p < tl.cdiv(length - begin, size)
    peaks = tl.load(peak + place + p, mask=used, other=float("-inf"))
    highest = tl.max(peaks, axis=0)
    factor = tl.exp(peaks - tl.where(highest == float("-inf"), 0.0, highest))  # 0 where there is no partition
    sums = tl.sum(tl.load(total + place + p, mask=used, other=0.0) * factor, axis=0)
    v = tl.load(
        weighted + (place + p)[:, None] * VALUE_DIM + e[None, :],
        mask=used[:, None] & inside[None, :],
        other=0.0,
    )
    mixed = tl.sum(v * factor[:, None], axis=0)
    return mixed / tl.where(sums > 0, sums, 1.0)


@triton.jit(do_not_specialize=["partitions", "window"])
def join_partitions(
    peak,  # [n, heads, partitions] float32
    total,  # [n, heads, partitions] float32
    weighted,  # [n, heads, partitions, VALUE_DIM] float32
    rows,  # [n]
    context,  # [n]
    partitions,
    window,
    out,  # [T, heads, VALUE_DIM]
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program for each row and query head; a row that sees nothing becomes zeros."""
    item, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    e = tl.arange(0, VALUE_TILE)
    inside = e < VALUE_DIM
    place = (item * heads + head).to(tl.int64) * partitions
    length = tl.load(context + item)
    result = joined(peak, total, weighted, place, length, window, e, inside, VALUE_DIM, LEAST, MOST, TOKENS)
    row = tl.load(rows + item).to(tl.int64)
    tl.store(out + (row * heads + head) * VALUE_DIM + e, result.to(out.dtype.element_ty), mask=inside)
