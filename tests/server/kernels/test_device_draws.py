"""Drawing on a device: nobody waits for it but once. What is drawn is in ``test_draws.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manylora.server.kernels.cuda import drawing
from manylora.server.kernels.draws import Draws
from manylora.server.kernels.reference import sampling
from tests.support.draws import PARAMS, draws_of

WAITS = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "is_nonzero", "equal", "bincount")


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        assert not name.startswith(WAITS), name
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "an index of truth values"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "params", [[{"temperature": 0.0}], [{}], list(PARAMS)], ids=["greedy", "whole", "all"]
)
def test_nothing_waits_for_the_device_before_the_tokens_are_there(
    monkeypatch: pytest.MonkeyPatch, params: list[dict[str, float]]
) -> None:
    sends: list[np.ndarray[Any, Any]] = []

    def sent(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
        sends.append(array)
        return torch.from_numpy(array).to(device)

    monkeypatch.setattr(drawing, "sent", sent)
    # One far off: no row needs more tokens than the candidates.
    table = torch.randn(len(params), 5000).index_fill(1, torch.tensor(7), 60.0)
    limited = [{**p, "top_k": min(p.get("top_k", 0), 40)} for p in params]
    draws = draws_of(table, limited, np.linspace(0.01, 0.99, len(params)))
    with NoWaiting():
        assert drawing.draw(draws) == [7] * len(params)
    assert len(sends) == 1


def test_flat_rows_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the candidates do not reach as far as top-p and top-k do, and nowhere else."""
    again: list[int] = []
    reference = sampling.draw

    def noted(draws: Draws) -> list[int]:
        again.append(len(draws.logits))
        return reference(draws)

    monkeypatch.setattr(sampling, "draw", noted)
    table = torch.stack([torch.zeros(5000), torch.zeros(5000), torch.randn(5000) * 9])
    params: list[dict[str, float]] = [{"top_p": 0.9}, {"top_k": 40}, {"top_p": 0.9}]
    tokens = drawing.draw(draws_of(table, params, np.array([0.5, 0.5, 0.5])))
    assert again == [1]
    assert tokens[:2] == [2250, 20]


def test_equal_tokens_stand_in_the_order_of_their_ids() -> None:
    table = torch.zeros(4, 3000)
    table[:, ::2] = -0.0
    params: list[dict[str, float]] = [{"top_k": 3, "temperature": 1.0}] * 4
    tokens = drawing.draw(draws_of(table, params, np.array([0.0, 0.34, 0.67, 0.99])))
    assert tokens == [0, 1, 2, 2]
