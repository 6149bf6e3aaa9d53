"""A tiny model that serves adapters of every kind at once, and PEFT for each of them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import TrainableTokensConfig

from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapter_kinds import PeftPerAdapter, write_kinds
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.engine_harness import Answer, EngineHarness
from tests.support.further_kinds import write_further_kinds
from tests.support.matrix_kinds import write_matrix_kinds
from tests.support.peft_oracle import assert_logits_match
from tests.support.soft_prompts import SoftPromptPeft, model_for_prefixes, write_soft_prompts
from tests.support.vocabulary_adapters import make_any

FAMILY = "llama-untied-bias"


class EveryKind:
    """A tiny model with adapters of every kind on its device, and PEFT for each of them."""

    def __init__(self, root: Path, *, ranks: int = 1) -> None:
        model = model_for_prefixes(root / "model", FAMILY)
        prompts = write_soft_prompts(root / "prompts", model)
        others = {
            **write_kinds(root / "kinds", model, FAMILY),
            **write_further_kinds(root / "further", model, FAMILY),
            **write_matrix_kinds(root / "matrix", model, FAMILY),
            "tokens": make_any(root / "tokens", model, TrainableTokensConfig(token_indices=[3, 70]), seed=9),
        }
        self.paths: dict[str, Path] = others | prompts
        self.harness = EngineHarness(model, max_batch_tokens=48, ranks=ranks)
        self.pages: dict[str, AdapterPages] = {n: self.harness.load(p) for n, p in self.paths.items()}
        self.prompts = SoftPromptPeft(model, prompts)
        self.others = PeftPerAdapter(model, others)

    def check(self, *, times: int = 1, max_tokens: int = 3) -> tuple[list[Answer], int]:
        """Run a row of every kind and of the base together, ``times`` over; the answers, and preemptions."""
        names = [None, *self.paths] * times
        rows = [
            self.harness.sequence(
                prompt_of(3 + 5 * i % 31, i),
                *([] if n is None else [(self.pages[n], 1.0)]),
                max_tokens=max_tokens,
            )
            for i, n in enumerate(names)
        ]
        with recorded_logits() as logits:
            answers = self.harness.run(*rows)
        for name, row, answer in zip(names, rows, answers, strict=True):
            ids = row.token_ids[: row.num_prompt_tokens] + answer.token_ids[:-1]
            oracle = self.prompts if name in self.prompts.names else self.others
            expected = oracle.logits(ids, name)[row.num_prompt_tokens - 1 :]  # type: ignore[arg-type]
            assert_logits_match(torch.stack(logits[row.id]), expected, name=str(name))
            assert expected.argmax(-1).tolist() == answer.token_ids, name
        return answers, sum(row.num_preemptions for row in rows)
