"""Brings a decoder's weights into the form the kernels read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from manylora.server.kernels.buffers import total_bytes, zeros
from manylora.server.kernels.codes import Kind
from manylora.server.kernels.cpu import abi
from manylora.server.kernels.cpu.huge_pages import Arena
from manylora.server.kernels.cpu.packed_codes import BLOCK, Packed, coded_bytes, pack_codes, plain
from manylora.server.kernels.matrices import Matrix, QuantizedMatrix, codes_of
from manylora.server.kernels.weights import (
    MATRICES,
    DecoderWeights,
    ExpertPlace,
    Experts,
    LayerWeights,
    stack_biases,
)

_LINE = 64  # bytes a piece of an arena may be rounded up by


class PackedWeights:
    """The packed tensors of a decoder and the struct that points to them. Keeps what it points to alive."""

    def __init__(self, native: ctypes.CDLL, weights: DecoderWeights) -> None:
        self._native = native
        self._keep: list[torch.Tensor] = []
        self._arena = Arena(_packed_bytes(weights))
        self._matrices: list[dict[str, Packed]] = []  # of each layer
        self._experts: list[dict[str, list[torch.Tensor]]] = []  # of each layer: gate_up and down
        self._norm_weight = weights.norm_weight
        cos, sin = ([self._vector(table) for table in tables] for tables in (weights.cos, weights.sin))
        layers = [self._layer(layer) for layer in weights.layers]
        for packed, layer in zip(layers, weights.layers, strict=True):
            if layer.rope is not None:
                packed.cos, packed.sin = cos[layer.rope], sin[layer.rope]
        self._layers = (abi.Layer * len(layers))(*layers)
        vocab, hidden = weights.lm_head.shape
        self._head = self._matrix("lm_head", weights.lm_head)
        q_norm = weights.layers[0].q_norm
        self.decoder = abi.Decoder(
            layer=self._layers,
            embedding=self._hold(weights.embedding.contiguous()),
            final_norm=self._norm(weights.final_norm),
            lm_head=self._head.struct,
            layers=len(weights.layers),
            hidden=hidden,
            intermediate=weights.intermediate,
            vocab=vocab,
            heads=weights.n_heads,
            kv_heads=weights.n_kv_heads,
            head_dim=weights.head_dim,
            positions=weights.cos.shape[1],
            eps=weights.eps,
            scale=weights.scale,
            score_cap=weights.score_cap or 0.0,
            embedding_scale=weights.embedding_scale,
            residual_scale=weights.residual_scale,
            logit_scale=weights.logit_scale,
            logit_cap=weights.logit_cap or 0.0,
            turned=2 * weights.cos.shape[2],
            activation=abi.ACTIVATIONS[weights.activation],
            qkv_modules=1 if "qkv" in weights.stacked else 3,
            gate_up_modules=1 if "gate_up" in weights.stacked else 2,
            joint_qk_norm=q_norm is not None and len(q_norm) != weights.head_dim,
            experts=weights.experts,
            expert_intermediate=weights.expert_intermediate,
            chosen_experts=weights.chosen_experts,
            normalized_shares=weights.normalized_shares,
        )

    def copy_layers(self) -> ctypes.Array[abi.Layer]:
        """A copy of the table of layers, to be changed at will; it points to memory of these weights."""
        return (abi.Layer * len(self._layers))(*self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes of everything packed or held."""
        matrices = [self._head, *(packed for layer in self._matrices for packed in layer.values())]
        return total_bytes(self._keep) + sum(packed.nbytes for packed in matrices)

    def rows(self, layer: int, name: str, rows: range, inputs: int) -> torch.Tensor:
        """Rows of a packed matrix ("qkv", "o", "gate_up" or "down") as they were given, [rows, inputs].

        Codes are unpacked. Of "gate_up" they must be the gate's or the up projection's, all of them, or both.
        """
        return _rows(self._weights_of(self._matrices[layer][name], inputs), name, rows, inputs)

    def expert(self, place: ExpertPlace, outputs: int, inputs: int) -> torch.Tensor:
        """The matrix of one expert as it was given, [outputs, inputs]."""
        packed = self._experts[place.layer][place.name][place.number].view(torch.int32)
        return _rows(packed, place.name, range(outputs), inputs)

    def expert_addresses(self, layer: int, name: str) -> torch.Tensor:
        """The addresses of the matrices of a layer's experts, "gate_up" or "down": a list of one's own."""
        return addresses(self._experts[layer][name])

    def _weights_of(self, packed: Packed, inputs: int) -> torch.Tensor:
        """The weights of a matrix, packed and plain, as pairs of inputs: int32."""
        if packed.struct.kind == Kind.PLAIN:
            return packed.tensors[0].view(torch.int32)
        outputs = BLOCK * packed.struct.blocks
        made = torch.empty(outputs * inputs, dtype=torch.bfloat16)
        self._native.manylora_unpack(packed.struct, made.data_ptr(), outputs, inputs)
        return made.view(torch.int32)

    def _layer(self, layer: LayerWeights) -> abi.Layer:
        packed = {name: self._matrix(name, getattr(layer, name)) for name in layer.matrices}
        self._matrices.append(packed)
        made = abi.Layer(
            input_norm=self._norm(layer.input_norm),
            q_norm=self._norm(layer.q_norm),
            k_norm=self._norm(layer.k_norm),
            post_norm=self._norm(layer.post_norm),
            window=0 if layer.window is None else layer.window,
            attention_norm=self._norm(layer.attention_norm),
            mlp_norm=self._norm(layer.mlp_norm),
        )
        for name, matrix in packed.items():
            setattr(made, name, matrix.struct)
            setattr(made, f"{name}_bias", self._bias(name, layer))
        if layer.experts is not None:
            made.router = self._hold(self._plain("router", layer.experts.router))
        packed_experts = {} if layer.experts is None else self._pack_experts(layer.experts)
        self._experts.append(packed_experts)
        for name, each in packed_experts.items():
            setattr(made, f"expert_{name}", self._hold(addresses(each)))
        return made

    def _pack_experts(self, experts: Experts) -> dict[str, list[torch.Tensor]]:
        both = {"gate_up": experts.gate_up, "down": experts.down}
        packed = {name: [self._plain(name, m) for m in matrices] for name, matrices in both.items()}
        self._keep += [*packed["gate_up"], *packed["down"]]
        return packed

    def _hold(self, tensor: torch.Tensor) -> int:
        self._keep.append(tensor)
        return tensor.data_ptr()

    def _vector(self, tensor: torch.Tensor) -> int:
        return self._hold(tensor.float().contiguous())

    def _norm(self, weight: torch.Tensor | None) -> int | None:
        return None if weight is None else self._vector(self._norm_weight(weight))

    def _bias(self, name: str, layer: LayerWeights) -> int | None:
        matrix = getattr(layer, name)
        bias = matrix.bias() if isinstance(matrix, QuantizedMatrix) else getattr(layer, f"{name}_bias")
        return None if bias is None else self._hold(_padded_bias(name, bias))

    def _matrix(self, name: str, matrix: Matrix) -> Packed:
        if isinstance(matrix, QuantizedMatrix):
            return pack_codes(self._native, codes_of(matrix), name == "gate_up", self._arena)
        return plain(self._plain(name, matrix), matrix.shape[1])

    def _plain(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        return pack(self._native, name, matrix, self._arena)


class MergedLayers:
    """Merged weights for the native step: the base's table of layers, with other pointers in some places."""

    def __init__(self, native: ctypes.CDLL, base: PackedWeights, weights: DecoderWeights) -> None:
        self._native = native
        self._base = base  # whose memory the other pointers point to
        self._weights = weights
        self._keep: list[torch.Tensor] = []
        self._tables: dict[
            tuple[int, str], torch.Tensor
        ] = {}  # addresses of a layer's experts, where changed
        self.layers = base.copy_layers()
        self.final_norm: int | None = None  # address of another final norm

    @property
    def nbytes(self) -> int:
        return total_bytes(self._keep)

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        expert = self._weights.expert_place(modules[0])
        if expert is not None:
            self._put_expert(expert, weights[0])
            return
        layer, name = self._weights.place(modules[0])
        if name not in MATRICES:
            self._put_norm(layer, name, weights[0])
            return
        matrix = torch.cat(tuple(weights))
        packed = pack(self._native, name, matrix, Arena(2 * _packed_elements(matrix) + _LINE))
        self._keep.append(packed)
        setattr(self.layers[layer], name, plain(packed, matrix.shape[1]).struct)
        bias = stack_biases(weights, biases)
        if bias is not None:
            padded = _padded_bias(name, bias)
            self._keep.append(padded)
            setattr(self.layers[layer], f"{name}_bias", padded.data_ptr())

    def _put_expert(self, place: ExpertPlace, weight: torch.Tensor) -> None:
        """Put one matrix in the list of the layer's, which the first change makes a copy of the base's."""
        # Without huge pages: what they round up a single expert by is no small share of it.
        memory = zeros((_packed_elements(weight),), torch.bfloat16, weight.device)
        self._keep.append(pack_into(memory, self._native, place.name, weight))
        key = place.layer, place.name
        if key not in self._tables:
            self._tables[key] = self._base.expert_addresses(*key)
            self._keep.append(self._tables[key])
            setattr(self.layers[place.layer], f"expert_{place.name}", self._tables[key].data_ptr())
        self._tables[key][place.number] = memory.data_ptr()

    def _put_norm(self, layer: int, name: str, weight: torch.Tensor) -> None:
        wide = self._weights.norm_weight(weight).float().contiguous()
        self._keep.append(wide)
        if layer == len(self.layers):
            self.final_norm = wide.data_ptr()
        else:
            setattr(self.layers[layer], name, wide.data_ptr())


def pack(native: ctypes.CDLL, name: str, matrix: torch.Tensor, arena: Arena) -> torch.Tensor:
    """``matrix`` [out, in], which is ``name`` in :class:`LayerWeights` or the head, in the kernels' form."""
    return pack_into(arena.take(_packed_elements(matrix), torch.bfloat16), native, name, matrix)


def pack_into(packed: torch.Tensor, native: ctypes.CDLL, name: str, matrix: torch.Tensor) -> torch.Tensor:
    """As :func:`pack`, into memory that starts on a cache line; returns it."""
    outputs, inputs = matrix.shape
    if name == "gate_up":
        native.manylora_pack_gate_up(matrix.contiguous().data_ptr(), packed.data_ptr(), outputs // 2, inputs)
    else:
        native.manylora_pack(matrix.contiguous().data_ptr(), packed.data_ptr(), outputs, inputs)
    return packed


def addresses(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where ``tensors`` are: int64, one each."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)


def _rows(packed: torch.Tensor, name: str, rows: range, inputs: int) -> torch.Tensor:
    """Rows of a packed matrix, given as int32 pairs of inputs, see :meth:`PackedWeights.rows`."""
    pairs = packed.view(-1, inputs // 2, BLOCK)
    if name == "gate_up":
        half = pairs.shape[0] * BLOCK // 2
        if len(rows) > half:
            parts = (range(half), range(half, 2 * half))
            return torch.cat([_rows(packed, name, part, inputs) for part in parts])
        first = 0 if rows.start == 0 else BLOCK // 2
        blocks, skipped = pairs[:, :, first : first + BLOCK // 2], 0
    else:
        blocks = pairs[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        skipped = rows.start % BLOCK
    whole = blocks.transpose(1, 2).contiguous().view(-1, inputs // 2).view(torch.bfloat16)
    return whole[skipped : skipped + len(rows)]


def _padded_bias(name: str, bias: torch.Tensor) -> torch.Tensor:
    ordered = _interleave(bias) if name == "gate_up" else bias
    return torch.nn.functional.pad(ordered.float(), (0, -len(bias) % BLOCK))


def _packed_elements(matrix: torch.Tensor) -> int:
    outputs, inputs = matrix.shape
    return (outputs + -outputs % BLOCK) * inputs


def _packed_bytes(weights: DecoderWeights) -> int:
    matrices: list[Matrix] = [weights.lm_head]
    for layer in weights.layers:
        matrices += [getattr(layer, name) for name in layer.matrices]
        if layer.experts is not None:
            matrices += [layer.experts.router, *layer.experts.gate_up, *layer.experts.down]
    return sum(_bytes_of(matrix) for matrix in matrices)


def _bytes_of(matrix: Matrix) -> int:
    if isinstance(matrix, QuantizedMatrix):
        return coded_bytes(codes_of(matrix))
    return 2 * _packed_elements(matrix) + _LINE


def _interleave(bias: torch.Tensor) -> torch.Tensor:
    """Gate and up biases [2 I] in the packed order: 16 of one, 16 of the other."""
    return bias.view(2, -1, 16).transpose(0, 1).reshape(-1)
