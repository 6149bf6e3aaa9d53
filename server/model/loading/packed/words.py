"""GPTQ's and AWQ's words of eight 4-bit codes, as codes in one order.

A weight is ``(code - zero) * scale``, an exact product that is rounded once to the dtype it is multiplied in:
in float16, the dtype of nearly all scales, the result is what AutoGPTQ, AutoAWQ and GPTQModel compute.
"""

from __future__ import annotations

import torch

from manylora.server.kernels.codes import PLACES, Codes, Kind

_PER_WORD = 8  # codes in an int32
# Where AWQ's files have the codes of eight consecutive outputs: code i of a word belongs to output _AWQ[i].
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
_ONES = 0x11111111  # one in each code of a word
_CHUNK = 256  # outputs that are laid out anew together


def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    *,
    stored_less: int,
) -> Codes:
    """The codes of a layer as GPTQ's files have them.

    Args:
        qweight: [in / 8, out] int32, eight inputs a word.
        qzeros: [groups, out / 8] int32, eight outputs a word.
        scales: [groups, out].
        order: [in] the group of each input, or None where they follow each other.
        stored_less: by how much less zero points are stored: 1 in version 1 of the format, 0 in version 2. It
            was taken from whole words, and a zero point of 0 borrowed from its neighbour.
    """
    inputs, outputs = qweight.shape[0] * _PER_WORD, qweight.shape[1]
    packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for start in range(0, outputs, _CHUNK):
        words = qweight[:, start : start + _CHUNK]
        packed[start : start + _CHUNK] = _paired(_unpacked(words.T).flatten(1))
    return _codes(packed, _unpacked(qzeros + stored_less * _ONES).flatten(1), scales, order)


def from_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> Codes:
    """The codes of a layer as AWQ's files have them ("gemm"): words of eight outputs, interleaved.

    Args:
        qweight: [in, out / 8] int32.
        qzeros: [groups, out / 8] int32.
        scales: [groups, out].
    """
    inputs, words = qweight.shape
    packed = torch.empty(words * _PER_WORD, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for start in range(0, words, _CHUNK // _PER_WORD):
        part = _straight(qweight[:, start : start + _CHUNK // _PER_WORD]).T
        packed[start * _PER_WORD :][: len(part)] = _paired(part)
    return _codes(packed, _straight(qzeros), scales, None)


def _codes(
    packed: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, order: torch.Tensor | None
) -> Codes:
    """``zeros`` and ``scales`` are [groups, out]."""
    return Codes(
        Kind.SHIFTED,
        packed,
        scales.T.float().contiguous(),
        2 * packed.shape[1] // len(scales),
        table=PLACES.to(packed.device),
        offsets=zeros.T.float().contiguous(),
        order=order,
    )


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """The eight codes [..., 8] uint8 of each int32, the lowest bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 0xF).to(torch.uint8)


def _straight(words: torch.Tensor) -> torch.Tensor:
    """The codes [n, 8 w] of AWQ's words [n, w], in the order of the outputs."""
    codes = _unpacked(words)
    order = torch.tensor(_AWQ, device=words.device)
    return torch.empty_like(codes).index_copy_(-1, order, codes).flatten(1)


def _paired(codes: torch.Tensor) -> torch.Tensor:
    """Two codes [n, in] a byte: [n, in / 2]."""
    return (codes[:, 0::2] << 4) | codes[:, 1::2]
