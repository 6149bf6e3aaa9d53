"""Options of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.adapters.training.options.types import DATA, Count, Names, Options


class DataOptions(Options):
    """What is learned from, and what is measured on."""

    train_path: Annotated[
        UserPath,
        Option(
            DATA, "PATH", "JSON Lines, JSON, CSV, TSV or Parquet to learn from, a folder of them, or the "
            "description of data sets of Axolotl or LLaMA-Factory.", "has to be given", default="(required)",
        ),
    ]  # fmt: skip
    eval_path: Annotated[
        UserPath | None,
        Option(
            DATA, "PATH", "Rows to evaluate on, never learned from; of the same kinds.",
            "rows of train_path are held out",
        ),
    ] = None  # fmt: skip
    dataset: Annotated[
        Names,
        Option(
            DATA, "NAMES", "Which data sets of a dataset_info.json (LLaMA-Factory) that has several.",
            "a file of rows is one data set", repeatable=True,
        ),
    ] = ()  # fmt: skip
    skip_bad_rows: Annotated[
        int,
        Option(
            DATA, "ROWS", "Leave out up to so many rows that have faults, and tell which.",
            "a fault may be in every row of its kind, so somebody should look at the first one",
        ),
        Field(ge=0, le=10**9),
    ] = 0  # fmt: skip
    eval_split: Annotated[
        float,
        Option(
            DATA, "SHARE", "Share of train_path that is held out when there is no eval_path; 0 for none.",
            "an adapter that was never measured on other rows should not be served",
        ),
        Field(ge=0, le=0.5),
    ] = 0.05  # fmt: skip
    task: Annotated[
        Literal["sft", "dpo", "classification", "embedding"],
        Option(
            DATA, "TASK", "sft (answers), dpo (preferences), classification (text and label) or embedding "
            "(texts that belong together).",
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
    allow_special_tokens: Annotated[
        bool,
        Option(
            DATA, "", "Control tokens that are spelled in messages count as such.",
            "what people write should close no turn; the server reads messages the same way",
            switch=True,
        ),
    ] = False  # fmt: skip
    packing: Annotated[
        bool,
        Option(
            DATA, "", "Fill sequences of max_length with several rows, none of which sees another (sft).",
            "batches then hold a varying number of rows, so the learning rate means something else",
            switch=True,
        ),
    ] = False  # fmt: skip
