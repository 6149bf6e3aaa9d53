"""The types that options share, and the panels they stand in."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from manylora.adapters.options.values import parse_pattern_numbers, parse_settings, split_list, wrap_text

BASE, DATA, STEPS, LORA = "Base model", "Data", "Training", "Adapter"
WATCH, RUN = "While it runs", "Output"

Count = Annotated[int, Field(ge=1, le=10**9)]
Interval = Annotated[float, Field(gt=0, le=10**9)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]
Texts = Annotated[tuple[str, ...], BeforeValidator(wrap_text)]
Ranks = Annotated[dict[str, Annotated[int, Field(ge=1, le=1024)]], BeforeValidator(parse_pattern_numbers)]
Alphas = Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], BeforeValidator(parse_pattern_numbers)]
Settings = Annotated[dict[str, Any], BeforeValidator(parse_settings)]


class Options(BaseModel):
    """Base of the trainer's options: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
