"""What a step of the engine computes, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.server.options.types import ENGINE, AutoSequences, AutoSize, AutoTokens, Options


class EngineOptions(Options):
    """What a step of the engine computes, and how."""

    max_num_seqs: Annotated[
        AutoSequences, Option(ENGINE, "N", "Sequences computed together.", default="128; GPU: 256")
    ] = None
    max_batch_tokens: Annotated[
        AutoTokens, Option(ENGINE, "N", "Tokens computed in one step.", default="512; GPU: 2048")
    ] = None
    scheduling: Annotated[
        Literal["fair", "fcfs"],
        Option(ENGINE, "HOW", "fair between tenants, or fcfs: as they come."),
    ] = "fair"
    max_stretch: Annotated[
        float,
        Option(ENGINE, "X", "Prompts stretch answers' steps X times at most."),
        Field(ge=1.1, le=1e6),
    ] = 4.0
    kv_cache_memory: Annotated[
        AutoSize, Option(ENGINE, "SIZE", "Memory for keys and values.", default="auto")
    ] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "int8"],
        Option(ENGINE, "KIND", "auto (as computed), int8: half the memory."),
    ] = "auto"
    kernels: Annotated[
        Literal["auto", "native", "pytorch"],
        Option(ENGINE, "KIND", "native (C++, Triton), pytorch, or auto."),
    ] = "auto"
    deterministic: Annotated[
        bool,
        Option(ENGINE, "", "A row's bits depend on no other row, on a GPU too.", switch=True),
    ] = False
    enable_prefix_cache: Annotated[
        bool,
        Option(
            ENGINE,
            "",
            "Compute common prompt beginnings once.",
            switch=True,
            without="Compute common prompt beginnings again.",
        ),
    ] = True

    allow_special_tokens: Annotated[
        bool,
        Option(
            ENGINE,
            "",
            "Control tokens spelled in messages count as such.",
            switch=True,
            without="Control tokens spelled in messages are text.",
        ),
    ] = False
