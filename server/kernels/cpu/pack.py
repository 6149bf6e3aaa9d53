"""Brings a decoder's weights into the form the kernels read."""

from __future__ import annotations

import ctypes

import torch

from server.kernels.cpu import abi
from server.kernels.cpu.memory import Arena
from server.kernels.memory import total_bytes
from server.kernels.weights import DecoderWeights, LayerWeights, dense

_BLOCK = 32  # outputs of a packed block


class PackedWeights:
    """The packed tensors of a decoder and the struct that points to them. Keeps what it points to alive."""

    def __init__(self, native: ctypes.CDLL, weights: DecoderWeights) -> None:
        self._native = native
        self._keep: list[torch.Tensor] = []
        self._arena = Arena(_packed_bytes(weights))
        self._matrices: list[dict[str, torch.Tensor]] = []  # of each layer
        self._layers = (abi.Layer * len(weights.layers))(*(self._layer(layer) for layer in weights.layers))
        vocab, hidden = weights.lm_head.shape
        self.decoder = abi.Decoder(
            layer=self._layers,
            embedding=self._hold(weights.embedding.contiguous()),
            final_norm=self._vector(weights.final_norm),
            lm_head=self._hold(self._matrix(weights.lm_head)),
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

    @property
    def nbytes(self) -> int:
        """Bytes of everything packed or held."""
        return total_bytes([*self._keep, *(packed for layer in self._matrices for packed in layer.values())])

    def rows(self, layer: int, name: str, rows: range, inputs: int) -> torch.Tensor:
        """Rows of a packed matrix ("qkv", "o", "gate_up" or "down") as they were given, [rows, inputs].

        Of "gate_up" they must be the gate's or the up projection's, all of them.
        """
        pairs = self._matrices[layer][name].view(torch.int32).view(-1, inputs // 2, _BLOCK)
        if name == "gate_up":
            first = 0 if rows.start == 0 else _BLOCK // 2
            blocks, skipped = pairs[:, :, first : first + _BLOCK // 2], 0
        else:
            blocks = pairs[rows.start // _BLOCK : -(-rows.stop // _BLOCK)]
            skipped = rows.start % _BLOCK
        whole = blocks.transpose(1, 2).contiguous().view(-1, inputs // 2).view(torch.bfloat16)
        return whole[skipped : skipped + len(rows)]

    def _layer(self, layer: LayerWeights) -> abi.Layer:
        packed = {
            "qkv": self._matrix(dense(layer.qkv)),
            "o": self._matrix(dense(layer.o)),
            "gate_up": self._gate_up(dense(layer.gate_up)),
            "down": self._matrix(dense(layer.down)),
        }
        self._matrices.append(packed)
        return abi.Layer(
            input_norm=self._vector(layer.input_norm),
            qkv=packed["qkv"].data_ptr(),
            qkv_bias=self._bias(layer.qkv_bias),
            q_norm=self._vector(layer.q_norm),
            k_norm=self._vector(layer.k_norm),
            o=packed["o"].data_ptr(),
            o_bias=self._bias(layer.o_bias),
            post_norm=self._vector(layer.post_norm),
            gate_up=packed["gate_up"].data_ptr(),
            gate_up_bias=self._bias(None if layer.gate_up_bias is None else _interleave(layer.gate_up_bias)),
            down=packed["down"].data_ptr(),
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

    def _matrix(self, matrix: torch.Tensor) -> torch.Tensor:
        outputs, inputs = matrix.shape
        packed = self._arena.take(_packed_elements(matrix), torch.bfloat16)
        self._native.manylora_pack(matrix.contiguous().data_ptr(), packed.data_ptr(), outputs, inputs)
        return packed

    def _gate_up(self, matrix: torch.Tensor) -> torch.Tensor:
        outputs, inputs = matrix.shape
        packed = self._arena.take(outputs * inputs, torch.bfloat16)
        self._native.manylora_pack_gate_up(
            matrix.contiguous().data_ptr(), packed.data_ptr(), outputs // 2, inputs
        )
        return packed


def _packed_elements(matrix: torch.Tensor) -> int:
    outputs, inputs = matrix.shape
    return (outputs + -outputs % _BLOCK) * inputs


def _packed_bytes(weights: DecoderWeights) -> int:
    matrices = [weights.lm_head]
    for layer in weights.layers:
        matrices += [dense(matrix) for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return sum(2 * _packed_elements(matrix) + 64 for matrix in matrices)


def _interleave(bias: torch.Tensor) -> torch.Tensor:
    """Gate and up biases [2 I] in the packed order: 16 of one, 16 of the other."""
    return bias.view(2, -1, 16).transpose(0, 1).reshape(-1)
