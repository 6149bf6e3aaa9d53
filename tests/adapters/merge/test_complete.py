"""Nothing an adapter can change is forgotten where adapters are composed or merged."""

from __future__ import annotations

from dataclasses import fields

from manylora.adapters.format.artifact import Artifact
from manylora.adapters.format.weights.delta import ModuleDelta

_FACTS = {"directory", "digest", "kind", "nbytes", "rank", "base_model_name", "peft_version", "notes"}


def test_every_part_is_merged_or_refused() -> None:
    """When this fails: say in recipe, export_plan, weights and verify what becomes of the new part."""
    assert {f.name for f in fields(Artifact)} - _FACTS == {
        "delta",
        "vocabulary",
        "text",
        "activation",
        "classes",
        "prompt",
        "pooling",
        "experts",
    }
    low_rank = {"a", "b", "scaling", "a_scale", "b_scale"}
    others = {"magnitude", "b_bias", "bias", "output_scale", "input_scale", "scale", "update"}
    assert {f.name for f in fields(ModuleDelta)} == low_rank | others
