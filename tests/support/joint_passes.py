"""Watches the passes that several trainings take together."""

from __future__ import annotations

from typing import Any

import pytest

from manylora.adapters.training.jobs.joint_steps import JointSteps


def joint_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs' batches went through each pass over several; grows as they train."""
    found: list[int] = []
    original = JointSteps.take

    def take(self: JointSteps, parts: Any) -> Any:
        done = original(self, parts)
        found.append(sum(one is not None for one in done))
        return done

    monkeypatch.setattr(JointSteps, "take", take)
    return found
