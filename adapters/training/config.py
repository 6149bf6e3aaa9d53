"""One training run, as one frozen object: from flags, from a YAML file, or from a program.

Every option has one name everywhere: ``--learning-rate``, ``learning_rate``. What it means and why its
default is what it is stands beside it, and is what ``manylora train --help`` and docs/training-options.md
print.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adapters.errors import AdapterNameError
from adapters.mix import check_name
from adapters.training.config_rules import faults_of
from adapters.training.knob import Knob, as_list, as_pairs, as_texts

BASE, DATA, STEPS, LORA = "Base model", "Data", "Training", "Adapter"
WATCH, RUN = "While it runs", "Output"
_INIT = re.compile(r"default|gaussian|olora|pissa|pissa_niter_[1-9]\d?|eva|orthogonal")


def _check_init(value: str) -> str:
    if not _INIT.fullmatch(value):
        raise ValueError("must be default, gaussian, olora, pissa, pissa_niter_N, eva or orthogonal")
    return value


def _check_own_name(value: str) -> str:
    try:
        check_name(value)
    except AdapterNameError as error:
        raise ValueError(str(error)) from None
    return value


UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Interval = Annotated[float, Field(gt=0, le=10**9)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Texts = Annotated[tuple[str, ...], BeforeValidator(as_texts)]
Ranks = Annotated[dict[str, Annotated[int, Field(ge=1, le=1024)]], BeforeValidator(as_pairs)]
Alphas = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], BeforeValidator(as_pairs)]


class TrainConfig(BaseModel):
    """Everything that can be set about a run. Immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # --- base model
    base_model: Annotated[
        str,
        Knob(
            BASE, "MODEL", "smollm2-135m, a Hub id, or a directory.", "the model that the server starts with"
        ),
        Field(min_length=1, max_length=4096),
    ] = "smollm2-135m"
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        Knob(
            BASE, "DTYPE", "Of the frozen base: bf16, fp32 or auto (bf16 where the hardware computes in it).",
            "what the server does too; the adapter itself always trains in fp32",
        ),
    ] = "auto"  # fmt: skip
    quantization: Annotated[
        Literal["none", "nf4", "int8"],
        Knob(
            BASE, "KIND", "Of the frozen base: nf4 with double quantization or int8 (QLoRA), or none.",
            "a base that fits trains faster and a little better unquantized",
        ),
    ] = "none"  # fmt: skip
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Knob(BASE, "DEVICE", "cpu, cuda or auto: cuda if there is a GPU.", "a GPU is always faster"),
    ] = "auto"

    # --- data
    train_path: Annotated[
        UserPath, Knob(DATA, "FILE", "The JSON Lines to learn from.", "has to be given", default="(required)")
    ]
    eval_path: Annotated[
        UserPath | None,
        Knob(
            DATA, "FILE", "JSON Lines to evaluate on, never learned from.", "rows of train_path are held out"
        ),
    ] = None
    eval_split: Annotated[
        float,
        Knob(
            DATA, "SHARE", "Share of train_path that is held out when there is no eval_path; 0 for none.",
            "an adapter that was never measured on other rows should not be served",
        ),
        Field(ge=0, le=0.5),
    ] = 0.05  # fmt: skip
    task: Annotated[
        Literal["sft", "dpo", "classification"],
        Knob(
            DATA, "TASK", "sft (answers), dpo (preferences) or classification (text and label).",
            "most data is answers; files of another task are recognized and refused with its name",
        ),
    ] = "sft"  # fmt: skip
    max_length: Annotated[
        Count,
        Knob(
            DATA, "TOKENS", "Longer sequences are cut at their end, and counted.",
            "most chat rows are shorter, and memory grows with the longest",
        ),
    ] = 1024  # fmt: skip
    packing: Annotated[
        bool,
        Knob(
            DATA, "", "Fill sequences of max_length with several rows, none of which sees another (sft).",
            "batches then hold a varying number of rows, so the learning rate means something else",
            switch=True,
        ),
    ] = False  # fmt: skip

    # --- training
    num_train_epochs: Annotated[
        float,
        Knob(
            STEPS, "EPOCHS", "Passes over the data.",
            "a second pass still lowers the held-out loss of small data sets; a third mostly memorizes",
        ),
        Field(gt=0, le=1000),
    ] = 2.0  # fmt: skip
    max_steps: Annotated[
        Count | None,
        Knob(STEPS, "STEPS", "Optimizer steps; overrides num_train_epochs.", "epochs fit any amount of data"),
    ] = None
    batch_size: Annotated[
        Count,
        Knob(
            STEPS, "ROWS", "Sequences in one forward and backward, per process.",
            "LoRA learns worse with large batches: 8, and at most 16 with accumulation, is a safe region",
        ),
    ] = 8  # fmt: skip
    gradient_accumulation_steps: Annotated[
        Count,
        Knob(
            STEPS, "BATCHES", "Batches whose gradients make one optimizer step.",
            "only needed when batch_size sequences do not fit memory",
        ),
    ] = 1  # fmt: skip
    learning_rate: Annotated[
        float,
        Knob(
            STEPS, "RATE", "The highest learning rate.",
            "about ten times that of full fine-tuning, which is where LoRA's best rate lies for most models; "
            "very small models take up to 2e-3",
        ),
        Field(gt=0, le=1),
    ] = 2e-4  # fmt: skip
    lr_scheduler: Annotated[
        Literal["cosine", "linear", "constant"],
        Knob(
            STEPS, "SHAPE", "After the warm-up: cosine or linear down to 0, or constant.",
            "most steps at a high rate and a gentle end, with nothing to tune",
        ),
    ] = "cosine"  # fmt: skip
    warmup: Annotated[
        float,
        Knob(
            STEPS, "SHARE|STEPS", "Rise of the rate: a share of all steps below 1, else steps.",
            "B starts at zero, so the first gradients of A are noise",
        ),
        Field(ge=0, le=10**9),
    ] = 0.05  # fmt: skip
    optimizer: Annotated[
        Literal[
            "auto", "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor"
        ],
        Knob(
            STEPS, "NAME", "auto: paged_adamw_32bit on CUDA, adamw_torch on CPU. Or any of those, "
            "adamw_torch_fused, paged_adamw_8bit, adafactor.",
            "paged states survive memory peaks; on a CPU there is nothing to page to",
        ),
    ] = "auto"  # fmt: skip
    weight_decay: Annotated[
        float,
        Knob(
            STEPS, "DECAY", "Of A and B.", "the rank already bounds what the adapter can change",
        ),
        Field(ge=0, le=1),
    ] = 0.0  # fmt: skip
    max_grad_norm: Annotated[
        float,
        Knob(
            STEPS,
            "NORM",
            "Gradients are scaled down to this norm; 0 for never.",
            "one bad row then costs little",
        ),
        Field(ge=0, le=10**6),
    ] = 1.0
    gradient_checkpointing: Annotated[
        bool,
        Knob(
            STEPS, "", "Compute activations again in the backward pass rather than keeping them.",
            "costs a quarter of the speed; `manylora estimate` says whether the memory is needed",
            switch=True,
        ),
    ] = False  # fmt: skip
    seed: Annotated[
        int,
        Knob(
            STEPS,
            "SEED",
            "Of the order of rows, the split, A's start and dropout.",
            "any fixed number repeats",
        ),
        Field(ge=0, le=2**32 - 1),
    ] = 0
    dpo_beta: Annotated[
        float,
        Knob(
            STEPS, "BETA", "How strongly DPO holds the adapter to the base's answers.",
            "the value of the paper's experiments",
        ),
        Field(gt=0, le=100),
    ] = 0.1  # fmt: skip

    # --- adapter
    lora_r: Annotated[
        int,
        Knob(
            LORA, "RANK", "Rank of every target module.", "enough for most tasks; serving cost grows with it"
        ),
        Field(ge=1, le=1024),
    ] = 16
    lora_alpha: Annotated[
        float | None,
        Knob(
            LORA, "ALPHA", "The update is scaled by alpha / rank.",
            "a scale of 2 whatever the rank, so that learning rates carry over", default="2 * lora_r (32)",
        ),
        Field(gt=0, le=1e6),
    ] = None  # fmt: skip
    lora_dropout: Annotated[
        float,
        Knob(LORA, "SHARE", "Of the inputs of A while training.", "short runs do not overfit enough to gain"),
        Field(ge=0, lt=1),
    ] = 0.0
    target_modules: Annotated[
        Names,
        Knob(
            LORA, "NAMES", "all-linear (without the head), attention, mlp, or names of modules.",
            "adapting every linear layer beats a higher rank on fewer of them", repeatable=True,
            default="all-linear",
        ),
        Field(min_length=1, max_length=1000),
    ] = ("all-linear",)  # fmt: skip
    rank_pattern: Annotated[
        Ranks,
        Knob(
            LORA, "PATTERN=RANK", "Other ranks for modules that match.", "one rank is easier to judge",
            repeatable=True,
        ),
    ] = {}  # fmt: skip
    alpha_pattern: Annotated[
        Alphas,
        Knob(
            LORA, "PATTERN=ALPHA", "Other alphas for modules that match.", "as rank_pattern", repeatable=True
        ),
    ] = {}
    use_rslora: Annotated[
        bool,
        Knob(
            LORA, "", "Scale by alpha / √rank.", "with the default alpha it would be 4 times as strong",
            switch=True,
        ),
    ] = False  # fmt: skip
    use_dora: Annotated[
        bool,
        Knob(
            LORA, "", "Learn the magnitude of each output apart from its direction.",
            "a third slower to train, for a gain that mostly shows at low ranks", switch=True,
        ),
    ] = False  # fmt: skip
    init: Annotated[
        str,
        Knob(
            LORA, "INIT", "default, gaussian, olora, pissa, pissa_niter_N, eva or orthogonal.",
            "B = 0 starts exactly at the base and needs no conversion; olora and pissa start faster, train "
            "the base in fp32 and are converted to a plain adapter of rank 2r",
        ),
        AfterValidator(_check_init),
    ] = "default"  # fmt: skip
    loraplus_ratio: Annotated[
        float | None,
        Knob(
            LORA, "RATIO", "LoRA+: B learns this many times faster than A.",
            "needs its own learning rate; 16 is what its paper recommends",
        ),
        Field(ge=1, le=1000),
    ] = None  # fmt: skip
    modules_to_save: Annotated[
        Names,
        Knob(
            LORA, "NAMES", "Modules trained in full and saved with the adapter.",
            "each is a full copy of its weights in every adapter", repeatable=True,
        ),
    ] = ()  # fmt: skip

    # --- while it runs
    logging_steps: Annotated[
        Count, Knob(WATCH, "STEPS", "Between lines of metrics.jsonl.", "cheap, and curves want points")
    ] = 5
    eval_steps: Annotated[
        Interval,
        Knob(
            WATCH, "STEPS|SHARE", "Between evaluations: a number of steps, or a share of them below 1.",
            "ten points of the curve, whatever the length of the run",
        ),
    ] = 0.1  # fmt: skip
    save_steps: Annotated[
        Interval,
        Knob(
            WATCH, "STEPS|SHARE", "Between checkpoints to resume from; the last two are kept.",
            "a crash costs a tenth of the run at most",
        ),
    ] = 0.1  # fmt: skip
    early_stopping_patience: Annotated[
        Count | None,
        Knob(
            WATCH, "EVALS", "Stop after so many evaluations without a lower loss; the best is kept.",
            "the loss on few held-out rows is noisy; the curve shows when to use it",
        ),
    ] = None  # fmt: skip
    sample_prompts: Annotated[
        Texts,
        Knob(
            WATCH, "TEXT", "Answered by base and adapter at every evaluation.", "generation is slow",
            repeatable=True,
        ),
        Field(max_length=16),
    ] = ()  # fmt: skip
    sample_tokens: Annotated[
        Count,
        Knob(WATCH, "TOKENS", "Of each sample answer, and of those of the stop test.", "a few sentences"),
    ] = 64
    report_to: Annotated[
        Names,
        Knob(
            WATCH, "NAMES", "Trackers of transformers besides metrics.jsonl: tensorboard, wandb, mlflow, …",
            "nothing leaves the machine unless asked", repeatable=True,
        ),
    ] = ()  # fmt: skip

    # --- output
    output_dir: Annotated[
        UserPath,
        Knob(
            RUN, "DIR", "Gets adapter/, checkpoints/, metrics.jsonl, report.html.", "has to be given",
            default="(required)",
        ),
    ]  # fmt: skip
    name: Annotated[
        str | None,
        Knob(RUN, "NAME", "The adapter's name in its card and on the server.", "one name less to think of",
             default="name of output_dir"),
        AfterValidator(lambda value: value if value is None else _check_own_name(value)),
    ] = None  # fmt: skip
    publish: Annotated[
        str | None,
        Knob(
            RUN,
            "URL",
            "Upload the finished adapter to this server.",
            "an adapter is looked at before it serves",
        ),
        Field(pattern=r"^https?://"),
    ] = None

    @model_validator(mode="after")
    def _check_together(self) -> TrainConfig:
        faults = faults_of(self)
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def alpha(self) -> float:
        """lora_alpha with its default filled in."""
        return 2.0 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @property
    def adapter_name(self) -> str:
        """The name in the card and on a server."""
        return self.output_dir.name if self.name is None else self.name

    @property
    def converted(self) -> bool:
        """Whether the init changes the base, so that the adapter has to be converted at the end."""
        return self.init == "olora" or self.init.startswith("pissa")
