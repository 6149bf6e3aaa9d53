"""What fine-tuned models are called: ``ft:BASE:ORG:SUFFIX:ID``, and their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from manylora.adapters.mix import MAX_NAME

NO_TENANT: Final = "local"  # what stands for the organization of who has no tenant
_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")
_CHECKPOINT = ":ckpt-step-"
_TUNED = re.compile(r"(?:[^:/]+/)*ft:[^:]+:[^:]+:[^:]*:[^:]+(?::ckpt-step-\d+)?")
_STEP_DIGITS = 9
_ID_DIGITS = 8
_LONGEST_BASE, _LONGEST_ORG = 32, 24


def model_name(base: str, organization: str, suffix: str | None, job_id: str, namespace: str = "") -> str:
    """The name of the model that a job makes, which fits with all that may stand before and behind it.

    Args:
        base: the base model's name; of a Hub id what stands behind the slash.
        organization: the tenant's name, or :data:`NO_TENANT`.
        suffix: what its owner wants in it.
        job_id: ``ftjob-…``, whose digits make it the only one.
        namespace: that the registry puts before it.
    """
    own = job_id.rpartition("-")[2][:_ID_DIGITS]
    first = _plain(base.rpartition("/")[2])[:_LONGEST_BASE] or "base"
    organization = _plain(organization)[:_LONGEST_ORG]
    room = MAX_NAME - len(namespace) - len(_CHECKPOINT) - _STEP_DIGITS
    room -= len(f"ft:{first}:{organization}::{own}")
    wanted = "" if suffix is None else _plain(suffix)[: max(0, room)]
    return f"ft:{first}:{organization}:{wanted}:{own}"


def checkpoint_name(model: str, step: int) -> str:
    """The name of the model as it was at a step."""
    return f"{model}{_CHECKPOINT}{step}"


def _plain(text: str) -> str:
    return _OTHERS.sub("-", text)


def is_tuned(name: str) -> bool:
    """Whether a model is called so as jobs name what they make, whatever namespace stands before it."""
    return _TUNED.fullmatch(name) is not None


def checkpoints_of(model: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are checkpoints of ``model``."""
    return [name for name in names if name.startswith(model + _CHECKPOINT)]
