"""Changes of single logits: each row is changed as if it were alone, and everything is sent in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from manylora.server.engine.sampling import adjustments
from manylora.server.engine.sampling.adjustments import adjusted
from tests.support.sequences import make_sequence

WIDTH = 20
PARAMS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.4, "frequency_penalty": -0.7},
    {"logit_bias": {3: 2.0, 19: -5.0}},
    {"min_tokens": 9, "stop_token_ids": (7,)},
    {"repetition_penalty": 0.8, "presence_penalty": 1.0, "logit_bias": {0: 1.0}, "min_tokens": 9},
)


def test_rows_are_changed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    sends: list[int] = []

    def sent(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
        sends.append(len(array))
        return torch.from_numpy(array).to(device)

    monkeypatch.setattr(adjustments, "sent", sent)
    sequences = [make_sequence((1, 2, 3), **params) for params in PARAMS]
    for sequence in sequences:
        sequence.token_ids += [2, 5, 5]
    logits = torch.randn(8, WIDTH)
    before, rows = logits.clone(), [6, 0, 3, 4, 1]
    together = adjusted(logits, rows, sequences, frozenset({11}))
    assert len(sends) == 1
    assert torch.equal(logits, before)
    for place, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        alone = adjusted(logits, [row], [sequence], frozenset({11}))
        assert torch.equal(together[place], alone[0])
        assert not torch.equal(alone[0], logits[row])
    assert together[3].isneginf().nonzero().flatten().tolist() == [7, 11]
    penalty = np.float32(0.4) + np.float32(-0.7) * np.float32(2)
    assert together[1][5].item() == np.float32(logits[0, 5].item()) - penalty


def test_tokens_that_a_row_does_not_have_change_no_other_row() -> None:
    wide = make_sequence((0, WIDTH + 1), repetition_penalty=2.0, logit_bias={WIDTH: 9.0}, min_tokens=1)
    narrow = make_sequence((3,), logit_bias={0: 1.0})
    logits = torch.ones(2, WIDTH)
    result = adjusted(logits, [0, 1], [wide, narrow], frozenset({WIDTH + 4}))
    assert result[0].tolist() == [0.5, *[1.0] * (WIDTH - 1)]
    assert result[1].tolist() == [2.0, *[1.0] * (WIDTH - 1)]
