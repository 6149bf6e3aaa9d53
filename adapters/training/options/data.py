"""Options of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.adapters.training.options.types import DATA, Count, Options


class DataOptions(Options):
    """What is learned from, and what is measured on."""

    train_path: Annotated[
        UserPath,
        Option(DATA, "FILE", "The JSON Lines to learn from.", "has to be given", default="(required)"),
    ]
    eval_path: Annotated[
        UserPath | None,
        Option(
            DATA, "FILE", "JSON Lines to evaluate on, never learned from.", "rows of train_path are held out"
        ),
    ] = None
    eval_split: Annotated[
        float,
        Option(
            DATA, "SHARE", "Share of train_path that is held out when there is no eval_path; 0 for none.",
            "an adapter that was never measured on other rows should not be served",
        ),
        Field(ge=0, le=0.5),
    ] = 0.05  # fmt: skip
    task: Annotated[
        Literal["sft", "dpo", "classification"],
        Option(
            DATA, "TASK", "sft (answers), dpo (preferences) or classification (text and label).",
            "most data is answers; files of another task are recognized and refused with its name",
        ),
    ] = "sft"  # fmt: skip
    max_length: Annotated[
        Count,
        Option(
            DATA, "TOKENS", "Longer sequences are cut at their end, and counted.",
            "most chat rows are shorter, and memory grows with the longest",
        ),
    ] = 1024  # fmt: skip
    packing: Annotated[
        bool,
        Option(
            DATA, "", "Fill sequences of max_length with several rows, none of which sees another (sft).",
            "batches then hold a varying number of rows, so the learning rate means something else",
            switch=True,
        ),
    ] = False  # fmt: skip
