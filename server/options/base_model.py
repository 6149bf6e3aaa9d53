"""The base model, and where it is computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.server.options.types import MODEL, AutoLength, Options, Texts


class BaseModelOptions(Options):
    """The base model, and where it is computed."""

    model: Annotated[
        str,
        Option(MODEL, "MODEL", "Hub id, directory or .gguf file."),
        Field(min_length=1, max_length=4096),
    ] = "smollm2-135m"
    served_model_name: Annotated[
        str | None,
        Option(MODEL, "NAME", "What clients call the base.", default="MODEL's name"),
        Field(min_length=1, max_length=256),
    ] = None
    also_served_as: Annotated[Texts, Option(MODEL, "NAME", "An alias of the base.", repeatable=True)] = []
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        Option(MODEL, "DTYPE", "bf16, fp16, fp32, or auto: by the hardware."),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "nf4", "int8"],
        Option(MODEL, "BITS", "The base in 4 bits (nf4) or 8 (int8)."),
    ] = "none"
    device: Annotated[
        str,
        Option(MODEL, "DEVICE", "cpu, cuda or cuda:1; auto: a GPU, if any."),
        Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,2})?)$"),
    ] = "auto"
    tensor_parallel_size: Annotated[
        int,
        Option(MODEL, "N", "Cards, or processes, that share the base."),
        Field(ge=1, le=64),
    ] = 1
    max_model_len: Annotated[
        AutoLength, Option(MODEL, "N", "Longest prompt + answer, in tokens.", default="the model's")
    ] = None
