"""Options of the steps: how many, how large, how fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from manylora.adapters.options.option import Option
from manylora.adapters.training.methods import LORA, METHODS, check_method
from manylora.adapters.training.options.types import STEPS, Count, Options


class StepOptions(Options):
    """The optimizer's steps."""

    method: Annotated[
        str,
        Option(
            STEPS, "METHOD",
            f"lora; another kind of adapter: {', '.join(METHODS[2:])}; or full: train all weights, in "
            "fp32, and save a model of its own (sft).",
            "an adapter is a hundredth of the size of a model, takes a fraction of the memory, and many "
            "share one base; LoRA is the kind with the most options, and the fastest",
        ),
        AfterValidator(check_method),
    ] = LORA  # fmt: skip
    num_train_epochs: Annotated[
        float,
        Option(
            STEPS, "EPOCHS", "Passes over the data.",
            "a second pass still lowers the held-out loss of small data sets; a third mostly memorizes",
        ),
        Field(gt=0, le=1000),
    ] = 2.0  # fmt: skip
    max_steps: Annotated[
        Count | None,
        Option(
            STEPS, "STEPS", "Optimizer steps; overrides num_train_epochs.", "epochs fit any amount of data"
        ),
    ] = None
    batch_size: Annotated[
        Count,
        Option(
            STEPS, "ROWS", "Sequences in one forward and backward, per process.",
            "LoRA learns worse with large batches: 8, and at most 16 with accumulation, is a safe region",
        ),
    ] = 8  # fmt: skip
    gradient_accumulation_steps: Annotated[
        Count,
        Option(
            STEPS, "BATCHES", "Batches whose gradients make one optimizer step.",
            "only needed when batch_size sequences do not fit memory",
        ),
    ] = 1  # fmt: skip
    learning_rate: Annotated[
        float | None,
        Option(
            STEPS, "RATE", "The highest learning rate.",
            "about ten times that of full fine-tuning, which is where LoRA's best rate lies for most models; "
            "very small models take up to 2e-3; kinds that train few numbers take higher rates than LoRA",
            default="0.0002; 0.00002 with method full, 0.001 to 0.05 with another kind",
        ),
        Field(gt=0, le=1),
    ] = None  # fmt: skip
    lr_scheduler: Annotated[
        Literal["cosine", "linear", "constant"],
        Option(
            STEPS, "SHAPE", "After the warm-up: cosine or linear down to 0, or constant.",
            "most steps at a high rate and a gentle end, with nothing to tune",
        ),
    ] = "cosine"  # fmt: skip
    warmup: Annotated[
        float,
        Option(
            STEPS, "SHARE|STEPS", "Rise of the rate: a share of all steps below 1, else steps.",
            "B starts at zero, so the first gradients of A are noise",
        ),
        Field(ge=0, le=10**9),
    ] = 0.05  # fmt: skip
    optimizer: Annotated[
        Literal[
            "auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"
        ],
        Option(
            STEPS, "NAME", "auto: paged_adamw_32bit on CUDA, adamw_torch on CPU. Or any of those, "
            "adamw_torch_fused, paged_adamw_8bit, adafactor.",
            "paged states survive memory peaks; on a CPU there is nothing to page to",
        ),
    ] = "auto"  # fmt: skip
    weight_decay: Annotated[
        float,
        Option(
            STEPS, "DECAY", "Of A and B.", "the rank already bounds what the adapter can change",
        ),
        Field(ge=0, le=1),
    ] = 0.0  # fmt: skip
    max_grad_norm: Annotated[
        float,
        Option(
            STEPS,
            "NORM",
            "Gradients are scaled down to this norm; 0 for never.",
            "one bad row then costs little",
        ),
        Field(ge=0, le=10**6),
    ] = 1.0
    gradient_checkpointing: Annotated[
        bool,
        Option(
            STEPS, "", "Compute activations again in the backward pass rather than keeping them.",
            "costs a quarter of the speed; `manylora estimate` says whether the memory is needed",
            switch=True,
        ),
    ] = False  # fmt: skip
    seed: Annotated[
        int,
        Option(
            STEPS,
            "SEED",
            "Of the order of rows, the split, A's start and dropout.",
            "any fixed number repeats",
        ),
        Field(ge=0, le=2**32 - 1),
    ] = 0
    dpo_beta: Annotated[
        float,
        Option(
            STEPS, "BETA", "How strongly DPO holds the adapter to the base's answers.",
            "the value of the paper's experiments",
        ),
        Field(gt=0, le=100),
    ] = 0.1  # fmt: skip
