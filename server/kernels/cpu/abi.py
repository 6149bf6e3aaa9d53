"""The C interface of the native library (``src/abi.h``), field by field."""

from __future__ import annotations

import ctypes
from pathlib import Path

from manylora.server.kernels.weights import GELU_TANH, SILU

_P = ctypes.c_void_p
_I64 = ctypes.c_int64
_F32 = ctypes.c_float


class PackedMatrix(ctypes.Structure):
    """The C struct of a matrix, its kind a :class:`manylora.server.kernels.codes.Kind`."""

    _fields_ = (
        ("codes", _P),
        ("scales", _P),
        ("offsets", _P),
        ("table", _P),
        ("group", _I64),
        ("blocks", _I64),
        ("kind", ctypes.c_int32),
        ("factor", _F32),
        ("moderate", _I64),
    )


class Layer(ctypes.Structure):
    """Pointers of one decoder block."""

    _fields_ = (
        ("input_norm", _P),
        ("qkv", PackedMatrix),
        ("qkv_bias", _P),
        ("q_norm", _P),
        ("k_norm", _P),
        ("o", PackedMatrix),
        ("o_bias", _P),
        ("post_norm", _P),
        ("gate_up", PackedMatrix),
        ("gate_up_bias", _P),
        ("down", PackedMatrix),
        ("down_bias", _P),
        ("window", _I64),
        ("attention_norm", _P),
        ("mlp_norm", _P),
        ("cos", _P),
        ("sin", _P),
        ("router", _P),
        ("expert_gate_up", _P),
        ("expert_down", _P),
    )


class Decoder(ctypes.Structure):
    """The C struct of a whole decoder: sizes, weights and memory."""

    _fields_ = (
        ("layer", ctypes.POINTER(Layer)),
        ("embedding", _P),
        ("final_norm", _P),
        ("lm_head", PackedMatrix),
        ("pool", _P),
        ("pool_elements", _I64),
        ("layers", _I64),
        ("hidden", _I64),
        ("intermediate", _I64),
        ("vocab", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("head_dim", _I64),
        ("positions", _I64),
        ("num_blocks", _I64),
        ("max_rows", _I64),
        ("threads", _I64),
        ("kv_coded", _I64),
        ("eps", _F32),
        ("scale", _F32),
        ("score_cap", _F32),
        ("embedding_scale", _F32),
        ("residual_scale", _F32),
        ("logit_scale", _F32),
        ("logit_cap", _F32),
        ("turned", _I64),
        ("activation", _I64),
        ("qkv_modules", _I64),
        ("gate_up_modules", _I64),
        ("joint_qk_norm", _I64),
        ("experts", _I64),
        ("expert_intermediate", _I64),
        ("chosen_experts", _I64),
        ("normalized_shares", _I64),
    )


ACTIVATIONS = {SILU: 0, GELU_TANH: 1}


class Lora(ctypes.Structure):
    """The C struct of the adapters that the sequences of a step run with."""

    _fields_ = (
        ("adapters", _I64),
        ("offset", _P),
        ("rank", _P),
        ("max_rank", _P),
        ("max_expert_rank", _P),
        ("gain", _P),
        ("constant", _P),
        ("input_gain", _P),
        ("change", _P),
        ("partner", _P),
        ("distance", _P),
        ("input_blocks", _P),
        ("block_size", _P),
        ("start", _P),
        ("adapter", _P),
        ("weight", _P),
    )


class Step(ctypes.Structure):
    """The C struct of the arguments of one step."""

    _fields_ = (
        ("rows", _I64),
        ("sequences", _I64),
        ("table_width", _I64),
        ("logits_count", _I64),
        ("token_ids", _P),
        ("positions", _P),
        ("slots", _P),
        ("query_start", _P),
        ("context", _P),
        ("block_tables", _P),
        ("logits_rows", _P),
        ("lora", ctypes.POINTER(Lora)),
        ("logits", _P),
        ("given_count", _I64),
        ("given_rows", _P),
        ("given", _P),
        ("final_hidden", _P),
        ("layer", _P),
        ("final_norm", _P),
        ("raw_logits", _I64),
    )


class Draw(ctypes.Structure):
    """How the next tokens are drawn."""

    _fields_ = (
        ("rows", _I64),
        ("width", _I64),
        ("logits", _P),
        ("temperature", _P),
        ("top_k", _P),
        ("top_p", _P),
        ("min_p", _P),
        ("uniform", _P),
        ("allowed", _P),
        ("tokens", _P),
    )


FAULTS = {
    1: "a token id lies outside the vocabulary",
    2: "a position lies outside the rotary table",
    3: "a slot lies outside the KV cache",
    4: "a block table names a block outside the KV cache",
    5: "rows, contexts and block tables of a sequence disagree",
    6: "a logits row lies outside the step",
    7: "a mix names an adapter that is not in the step",
    8: "out of memory",
    9: "a row whose embedding is given lies outside the step",
    10: "keys and values of virtual tokens lie outside the pool",
}


def load(path: Path) -> ctypes.CDLL:
    """Load the library and declare its functions. torch must have been imported before: its OpenMP
    runtime is then the one the kernels use, and both share one pool of threads.

    Raises:
        ImportError: the library was made for other struct layouts.
    """
    native = ctypes.CDLL(str(path))
    native.manylora_struct_size.argtypes = (ctypes.c_int,)
    native.manylora_struct_size.restype = _I64
    for which, struct in enumerate((Layer, Decoder, Lora, Step, Draw, PackedMatrix)):
        if native.manylora_struct_size(which) != ctypes.sizeof(struct):
            raise ImportError(f"{path}: the layout of {struct.__name__} differs from the binding's")
    native.manylora_open.argtypes = (ctypes.POINTER(Decoder),)
    native.manylora_open.restype = _P
    native.manylora_close.argtypes = (_P,)
    native.manylora_close.restype = None
    native.manylora_step.argtypes = (_P, ctypes.POINTER(Step))
    native.manylora_step.restype = ctypes.c_int
    native.manylora_fill_cache.argtypes = (_P, _P, _I64, _I64)
    native.manylora_fill_cache.restype = ctypes.c_int
    native.manylora_open_sampler.argtypes = (_I64,)
    native.manylora_open_sampler.restype = _P
    native.manylora_close_sampler.argtypes = (_P,)
    native.manylora_close_sampler.restype = None
    native.manylora_draw.argtypes = (_P, ctypes.POINTER(Draw))
    native.manylora_draw.restype = ctypes.c_int
    native.manylora_prefer_huge_pages.argtypes = (_P, _I64)
    native.manylora_prefer_huge_pages.restype = None
    for name in ("manylora_pack", "manylora_pack_gate_up"):
        getattr(native, name).argtypes = (_P, _P, _I64, _I64)
        getattr(native, name).restype = None
    native.manylora_inputs_apart.argtypes = ()
    native.manylora_inputs_apart.restype = ctypes.c_int
    native.manylora_unpack.argtypes = (ctypes.POINTER(PackedMatrix), _P, _I64, _I64)
    native.manylora_unpack.restype = None
    native.manylora_gemm.argtypes = (_P, _P, _P, _I64, _I64, _I64, _I64)
    native.manylora_gemm.restype = None
    native.manylora_exp.argtypes = (_P, _P, _I64)
    native.manylora_exp.restype = None
    return native
