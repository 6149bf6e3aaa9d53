"""Options of the adapter."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from manylora.adapters.options.option import Option
from manylora.adapters.training.options.types import LORA, Alphas, Names, Options, Ranks, Settings

_INIT = re.compile(r"default|gaussian|olora|pissa|pissa_niter_[1-9]\d?|eva|orthogonal")


def _check_init(value: str) -> str:
    if not _INIT.fullmatch(value):
        raise ValueError("must be default, gaussian, olora, pissa, pissa_niter_N, eva or orthogonal")
    return value


class LoraOptions(Options):
    """Shape and start of the adapter."""

    lora_r: Annotated[
        int,
        Option(
            LORA,
            "RANK",
            "Rank of every target module.",
            "enough for most tasks; serving cost grows with it",
            default="16; with another kind than LoRA PEFT's",
        ),
        Field(ge=1, le=1024),
    ] = 16
    lora_alpha: Annotated[
        float | None,
        Option(
            LORA, "ALPHA", "The update is scaled by alpha / rank.",
            "a scale of 2 whatever the rank, so that learning rates carry over",
            default="2 * lora_r (32); with another kind than LoRA in PEFT's ratio to the rank",
        ),
        Field(gt=0, le=1e6),
    ] = None  # fmt: skip
    lora_dropout: Annotated[
        float,
        Option(
            LORA, "SHARE", "Of the inputs of A while training.", "short runs do not overfit enough to gain"
        ),
        Field(ge=0, lt=1),
    ] = 0.0
    target_modules: Annotated[
        Names,
        Option(
            LORA, "NAMES", "all-linear (without the head), attention, mlp, or names of modules.",
            "adapting every linear layer beats a higher rank on fewer of them", repeatable=True,
            default="all-linear; all norms with method ln_tuning, the embeddings with trainable_tokens",
        ),
        Field(min_length=1, max_length=1000),
    ] = ("all-linear",)  # fmt: skip
    rank_pattern: Annotated[
        Ranks,
        Option(
            LORA, "PATTERN=RANK", "Other ranks for modules that match.", "one rank is easier to judge",
            repeatable=True,
        ),
    ] = {}  # fmt: skip  # noqa: RUF012 - pydantic copies it
    alpha_pattern: Annotated[
        Alphas,
        Option(
            LORA, "PATTERN=ALPHA", "Other alphas for modules that match.", "as rank_pattern", repeatable=True
        ),
    ] = {}  # noqa: RUF012 - pydantic copies it
    use_rslora: Annotated[
        bool,
        Option(
            LORA, "", "Scale by alpha / √rank.", "with the default alpha it would be 4 times as strong",
            switch=True,
        ),
    ] = False  # fmt: skip
    use_dora: Annotated[
        bool,
        Option(
            LORA, "", "Learn the magnitude of each output apart from its direction.",
            "a third slower to train, for a gain that mostly shows at low ranks", switch=True,
        ),
    ] = False  # fmt: skip
    init: Annotated[
        str,
        Option(
            LORA, "INIT", "default, gaussian, olora, pissa, pissa_niter_N, eva or orthogonal.",
            "B = 0 starts exactly at the base and needs no conversion; olora and pissa start faster, train "
            "the base in fp32 and are converted to a plain adapter of rank 2r",
        ),
        AfterValidator(_check_init),
    ] = "default"  # fmt: skip
    init_adapter: Annotated[
        str | None,
        Option(
            LORA, "NAME|DIR", "Go on from this adapter: a directory, or a name in this machine's registry.",
            "a fresh adapter starts at the base; rank, targets and the like come with the one that is named",
        ),
        Field(min_length=1, max_length=4096),
    ] = None  # fmt: skip
    loraplus_ratio: Annotated[
        float | None,
        Option(
            LORA, "RATIO", "LoRA+: B learns this many times faster than A.",
            "needs its own learning rate; 16 is what its paper recommends",
        ),
        Field(ge=1, le=1000),
    ] = None  # fmt: skip
    modules_to_save: Annotated[
        Names,
        Option(
            LORA, "NAMES", "Modules trained in full and saved with the adapter.",
            "each is a full copy of its weights in every adapter", repeatable=True,
        ),
    ] = ()  # fmt: skip
    method_option: Annotated[
        Settings,
        Option(
            LORA, "KEY=VALUE", "An option of PEFT's config of the method, if that is not lora or full.",
            "PEFT's own defaults, fitted to the widths of the model", repeatable=True,
        ),
    ] = {}  # fmt: skip  # noqa: RUF012 - pydantic copies it
