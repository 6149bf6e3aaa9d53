"""Options of what a run shows and leaves behind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import check_name
from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.adapters.training.options.types import (
    RUN,
    WATCH,
    Count,
    Interval,
    Names,
    Options,
    Texts,
)


def _check_own_name(value: str) -> str:
    try:
        return check_name(value)
    except AdapterNameError as error:
        raise ValueError(str(error)) from None


class OutputOptions(Options):
    """What is logged, kept and published."""

    logging_steps: Annotated[
        Count, Option(WATCH, "STEPS", "Between lines of metrics.jsonl.", "cheap, and curves want points")
    ] = 5
    eval_steps: Annotated[
        Interval,
        Option(
            WATCH, "STEPS|SHARE", "Between evaluations: a number of steps, or a share of them below 1.",
            "ten points of the curve, whatever the length of the run",
        ),
    ] = 0.1  # fmt: skip
    save_steps: Annotated[
        Interval,
        Option(
            WATCH, "STEPS|SHARE", "Between checkpoints to resume from; the last two are kept, and the best.",
            "a crash costs a tenth of the run at most",
        ),
    ] = 0.1  # fmt: skip
    early_stopping_patience: Annotated[
        Count | None,
        Option(
            WATCH, "EVALS", "Stop after so many evaluations without a lower loss.",
            "the loss on few held-out rows is noisy; the curve shows when to use it",
        ),
    ] = None  # fmt: skip
    keep: Annotated[
        Literal["best", "last"],
        Option(
            WATCH, "WHICH", "What is published: best, the step with the lowest held-out loss, or last.",
            "training too long makes an adapter worse than it was; without held-out rows it is the last step",
        ),
    ] = "best"  # fmt: skip
    sample_prompts: Annotated[
        Texts,
        Option(
            WATCH, "TEXT", "Answered by base and adapter at every evaluation.", "generation is slow",
            repeatable=True,
        ),
        Field(max_length=16),
    ] = ()  # fmt: skip
    sample_rows: Annotated[
        int,
        Option(
            WATCH, "ROWS", "Of so many held-out rows (of train_path where none are held out) the prompts "
            "answered by base and adapter at the ends of the last three epochs, and by what is published.",
            "generation is slow",
        ),
        Field(ge=0, le=64),
    ] = 0  # fmt: skip
    sample_tokens: Annotated[
        Count,
        Option(WATCH, "TOKENS", "Of each sample answer, and of those of the stop test.", "a few sentences"),
    ] = 64
    report_to: Annotated[
        Names,
        Option(
            WATCH, "NAMES", "Trackers of transformers besides metrics.jsonl: tensorboard, wandb, mlflow, …",
            "nothing leaves the machine unless asked", repeatable=True,
        ),
    ] = ()  # fmt: skip
    output_dir: Annotated[
        UserPath,
        Option(
            RUN, "DIR", "Gets adapter/, checkpoints/, metrics.jsonl, report.html.", "has to be given",
            default="(required)",
        ),
    ]  # fmt: skip
    name: Annotated[
        str | None,
        Option(RUN, "NAME", "The adapter's name in its card and on the server.", "one name less to think of",
             default="name of output_dir"),
        AfterValidator(lambda value: value if value is None else _check_own_name(value)),
    ] = None  # fmt: skip
    publish: Annotated[
        str | None,
        Option(
            RUN,
            "URL",
            "Upload the finished adapter to this server.",
            "an adapter is looked at before it serves",
        ),
        Field(pattern=r"^https?://"),
    ] = None
