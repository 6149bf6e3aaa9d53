"""What the user leaves to the server is as suits the device, and what the user says goes first."""

from __future__ import annotations

import pytest

from manylora.server.options.defaults import EngineLimits
from manylora.server.options.settings import Settings


@pytest.mark.parametrize(
    ("accelerator", "asked", "limits"),
    [
        (True, {}, EngineLimits(256, 2048, 300.0)),
        (False, {}, EngineLimits(128, 512, None)),
        (True, {"max_num_seqs": 3, "step_timeout": 7.0}, EngineLimits(3, 2048, 7.0)),
        (False, {"max_batch_tokens": 600, "step_timeout": 7.0}, EngineLimits(128, 600, 7.0)),
    ],
)
def test_limits_of_steps(accelerator: bool, asked: dict[str, float], limits: EngineLimits) -> None:
    settings = Settings(**asked)  # type: ignore[arg-type]
    assert EngineLimits.of(settings, accelerator=accelerator) == limits
