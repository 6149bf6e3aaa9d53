"""Merged copies and exports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.adapters.options.values import UserPath
from manylora.server.options.types import MERGING, AutoSize, Options


class MergingOptions(Options):
    """Merged copies and exports."""

    merge_memory: Annotated[
        AutoSize, Option(MERGING, "SIZE", "Memory for merged copies.", default="auto")
    ] = None
    auto_merge: Annotated[
        bool,
        Option(MERGING, "", "Merge the adapter nearly all answers are for.", switch=True),
    ] = False
    auto_merge_share: Annotated[
        float,
        Option(MERGING, "SHARE", "How many of the answers that is."),
        Field(ge=0.5, le=1, allow_inf_nan=False),
    ] = 0.98
    auto_merge_seconds: Annotated[
        float,
        Option(MERGING, "S", "For how long they must have been."),
        Field(ge=1, le=86400, allow_inf_nan=False),
    ] = 60.0
    auto_merge_sequences: Annotated[
        float,
        Option(MERGING, "N", "How many must run at once, on average."),
        Field(ge=0.1, le=4096, allow_inf_nan=False),
    ] = 4.0
    export_root: Annotated[
        UserPath | None, Option(MERGING, "DIR", "Exported models go here.", default="no exports")
    ] = None
