"""GPTQ's and AWQ's 4-bit codes with a scale and a zero point for a group of inputs.

A weight is ``(code - zero) * scale``, computed in the dtype of the scales (float16 nearly always) and rounded
once to it, as AutoGPTQ, AutoAWQ and GPTQModel have it when they run in that dtype. The files of either pack
eight codes into an int32 in an order of their own; here both lie alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_PER_WORD = 8  # codes in an int32
# Where AWQ's files have the codes of eight consecutive outputs: code i of a word belongs to output _AWQ[i].
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)
_ONES = 0x11111111  # one in each code of a word
_CHUNK = 256  # outputs that are laid out anew together


@dataclass(frozen=True, eq=False)
class GroupCodes:
    """A matrix in 4 bits, with scales and zero points for groups of inputs."""

    codes: torch.Tensor  # [out, in / 2] uint8: inputs 2i in the low half of byte i, 2i + 1 in the high half
    zeros: torch.Tensor  # [out, groups] uint8, 0 to 15
    scales: torch.Tensor  # [out, groups] float16, bfloat16 or float32
    group: torch.Tensor | None = None  # [in] int32, the group of each input; None: they follow each other

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it takes memory for."""
        kept = (self.codes, self.zeros, self.scales)
        return kept if self.group is None else (*kept, self.group)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.codes.shape[0], self.codes.shape[1] * 2

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The weights of the outputs ``start : stop``, [n, in] in the dtype of the scales."""
        packed = self.codes[start:stop]
        codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1)
        zeros, scales = (self._spread(part[start:stop]) for part in (self.zeros, self.scales))
        return (codes.to(torch.int8) - zeros.to(torch.int8)) * scales

    def _spread(self, per_group: torch.Tensor) -> torch.Tensor:
        """[n, groups] -> [n, in]."""
        inputs, groups = self.shape[1], per_group.shape[1]
        if self.group is None:
            return per_group.repeat_interleave(inputs // groups, dim=1)
        return per_group.index_select(1, self.group)


def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    group: torch.Tensor | None,
    *,
    stored_less: int,
) -> GroupCodes:
    """The codes of a layer as GPTQ's files have them.

    Args:
        qweight: [in / 8, out] int32, eight inputs a word.
        qzeros: [groups, out / 8] int32, eight outputs a word.
        scales: [groups, out].
        group: [in] of each input, or None where they follow each other.
        stored_less: by how much less zero points are stored: 1 in version 1 of the format, 0 in version 2. It
            was taken from whole words, and a zero point of 0 borrowed from its neighbour.
    """
    inputs, outputs = qweight.shape[0] * _PER_WORD, qweight.shape[1]
    codes = torch.empty(outputs, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for start in range(0, outputs, _CHUNK):
        words = qweight[:, start : start + _CHUNK]
        codes[start : start + _CHUNK] = _paired(_unpacked(words.T).flatten(1))
    zeros = _unpacked(qzeros + stored_less * _ONES).flatten(1).T.contiguous()
    return GroupCodes(codes, zeros, scales.T.contiguous(), group)


def from_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> GroupCodes:
    """The codes of a layer as AWQ's files have them ("gemm"): words of eight outputs, interleaved.

    Args:
        qweight: [in, out / 8] int32.
        qzeros: [groups, out / 8] int32.
        scales: [groups, out].
    """
    inputs, words = qweight.shape
    codes = torch.empty(words * _PER_WORD, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for start in range(0, words, _CHUNK // _PER_WORD):
        part = _straight(qweight[:, start : start + _CHUNK // _PER_WORD]).T
        codes[start * _PER_WORD :][: len(part)] = _paired(part)
    return GroupCodes(codes, _straight(qzeros).T.contiguous(), scales.T.contiguous())


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """The eight codes [..., 8] uint8 of each int32, the lowest bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 0xF).to(torch.uint8)


def _straight(words: torch.Tensor) -> torch.Tensor:
    """The codes [n, 8 w] of AWQ's words [n, w], in the order of the outputs."""
    codes = _unpacked(words)
    return torch.empty_like(codes).index_copy_(-1, _order(words.device), codes).flatten(1)


def _order(device: torch.device) -> torch.Tensor:
    return torch.tensor(_AWQ, device=device)


def _paired(codes: torch.Tensor) -> torch.Tensor:
    """Two codes [n, in] a byte: [n, in / 2]."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
