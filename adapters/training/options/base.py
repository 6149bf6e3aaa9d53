"""Options of the base model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.adapters.training.options.types import BASE, Options


class BaseOptions(Options):
    """The frozen base model."""

    base_model: Annotated[
        str,
        Option(
            BASE, "MODEL", "smollm2-135m, a Hub id, or a directory.", "the model that the server starts with"
        ),
        Field(min_length=1, max_length=4096),
    ] = "smollm2-135m"
    chat_template: Annotated[
        UserPath | None,
        Option(
            BASE, "FILE", "Jinja template by which conversations are written, in place of the base's; saved "
            "with the adapter, which then serves with it.",
            "the base knows its own; another one takes training, as for tools that it has no place for",
            default="(the base's)",
        ),
    ] = None  # fmt: skip
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        Option(
            BASE, "DTYPE", "Of the frozen base: bf16, fp32 or auto (bf16 where the hardware computes in it).",
            "what the server does too; the adapter itself always trains in fp32",
        ),
    ] = "auto"  # fmt: skip
    quantization: Annotated[
        Literal["none", "nf4", "int8"],
        Option(
            BASE, "KIND", "Of the frozen base: nf4 with double quantization or int8 (QLoRA), or none.",
            "a base that fits trains faster and a little better unquantized",
        ),
    ] = "none"  # fmt: skip
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(BASE, "DEVICE", "cpu, cuda or auto: cuda if there is a GPU.", "a GPU is always faster"),
    ] = "auto"
