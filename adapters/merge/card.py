"""The model card of a merged model."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from manylora.adapters.merge.export_plan import ExportPlan
from manylora.adapters.merge.verify import Verification


def model_card(name: str, plan: ExportPlan, verification: Verification | None, effect_kept: float) -> str:
    """The card of a merged model: its members, the method, and how well it answers like them."""
    members = "\n".join(
        f"| {member.name} | `{member.artifact.digest[:12]}` | {member.weight:g} |" for member in plan.members
    )
    return f"""---
base_model: {json.dumps(plan.base_name)}
base_model_relation: merge
library_name: transformers
---

# {name}

{plan.base_name} with these adapters merged in by manylora {made_by()}:

| adapter | revision | weight |
|---|---|---|
{members}

Each weight is W + Σ weight · ΔW, computed in float32 from the base's stored weight and rounded once: that
left {effect_kept:.1%} of the change.

{_measured(verification)}
"""


def made_by() -> str:
    """The installed version of manylora, as model cards name it."""
    try:
        return version("manylora")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "(unknown version)"


def _measured(verification: Verification | None) -> str:
    if verification is None:
        return "Its logits were not compared with those of the base with the adapters beside it."
    compute = str(verification.compute_dtype).removeprefix("torch.")
    return (
        f"Compared with the base with the adapters beside it, on {verification.rows} rows in {compute}: "
        f"logits differ by {verification.error:.2g} of their spread (the adapters change them by "
        f"{verification.effect:.2g}), and the likeliest token is the same in {verification.same_top:.1%}."
    )
