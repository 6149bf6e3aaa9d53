"""Brings a decoder's weights into the form the kernels read."""

from __future__ import annotations

import ctypes

import torch

from server.kernels.cpu import abi
from server.kernels.cpu.memory import Arena
from server.kernels.inputs import DecoderWeights, LayerWeights

_BLOCK = 32  # outputs of a packed block


class PackedWeights:
    """The packed tensors of a decoder and the struct that points to them. Keeps what it points to alive."""

    def __init__(self, native: ctypes.CDLL, weights: DecoderWeights) -> None:
        self._native = native
        self._keep: list[torch.Tensor] = []
        self._arena = Arena(_packed_bytes(weights))
        self._layers = (abi.Layer * len(weights.layers))(*(self._layer(layer) for layer in weights.layers))
        vocab, hidden = weights.lm_head.shape
        self.decoder = abi.Decoder(
            layer=self._layers,
            embedding=self._hold(weights.embedding.contiguous()),
            final_norm=self._vector(weights.final_norm),
            lm_head=self._matrix(weights.lm_head),
            cos=self._vector(weights.cos),
            sin=self._vector(weights.sin),
            layers=len(weights.layers),
            hidden=hidden,
            intermediate=weights.intermediate,
            vocab=vocab,
            heads=weights.n_heads,
            kv_heads=weights.n_kv_heads,
            head_dim=weights.head_dim,
            positions=weights.cos.shape[0],
            eps=weights.eps,
            scale=weights.scale,
        )

    def _layer(self, layer: LayerWeights) -> abi.Layer:
        return abi.Layer(
            input_norm=self._vector(layer.input_norm),
            qkv=self._matrix(layer.qkv),
            qkv_bias=self._bias(layer.qkv_bias),
            q_norm=self._vector(layer.q_norm),
            k_norm=self._vector(layer.k_norm),
            o=self._matrix(layer.o),
            o_bias=self._bias(layer.o_bias),
            post_norm=self._vector(layer.post_norm),
            gate_up=self._gate_up(layer.gate_up),
            gate_up_bias=self._bias(None if layer.gate_up_bias is None else _interleave(layer.gate_up_bias)),
            down=self._matrix(layer.down),
            down_bias=self._bias(layer.down_bias),
            window=0 if layer.window is None else layer.window,
        )

    def _hold(self, tensor: torch.Tensor) -> int:
        self._keep.append(tensor)
        return tensor.data_ptr()

    def _vector(self, tensor: torch.Tensor | None) -> int | None:
        return None if tensor is None else self._hold(tensor.float().contiguous())

    def _bias(self, bias: torch.Tensor | None) -> int | None:
        if bias is None:
            return None
        return self._hold(torch.nn.functional.pad(bias.float(), (0, -len(bias) % _BLOCK)))

    def _matrix(self, matrix: torch.Tensor) -> int:
        outputs, inputs = matrix.shape
        packed = self._arena.take(_packed_elements(matrix), torch.bfloat16)
        self._native.manylora_pack(matrix.contiguous().data_ptr(), packed.data_ptr(), outputs, inputs)
        return self._hold(packed)

    def _gate_up(self, matrix: torch.Tensor) -> int:
        outputs, inputs = matrix.shape
        packed = self._arena.take(outputs * inputs, torch.bfloat16)
        self._native.manylora_pack_gate_up(
            matrix.contiguous().data_ptr(), packed.data_ptr(), outputs // 2, inputs
        )
        return self._hold(packed)


def _packed_elements(matrix: torch.Tensor) -> int:
    outputs, inputs = matrix.shape
    return (outputs + -outputs % _BLOCK) * inputs


def _packed_bytes(weights: DecoderWeights) -> int:
    matrices = [weights.lm_head]
    for layer in weights.layers:
        matrices += [layer.qkv, layer.o, layer.gate_up, layer.down]
    return sum(2 * _packed_elements(matrix) + 64 for matrix in matrices)


def _interleave(bias: torch.Tensor) -> torch.Tensor:
    """Gate and up biases [2 I] in the packed order: 16 of one, 16 of the other."""
    return bias.view(2, -1, 16).transpose(0, 1).reshape(-1)
