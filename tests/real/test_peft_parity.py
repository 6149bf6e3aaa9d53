"""The real model: a mixed batch of base and eight adapters against PEFT, one request at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.server.engine.sequence import Sequence as Row
from tests.support.adapter_set import AdapterSet, Ask, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import Answer
from tests.support.peft_oracle import Peft, assert_logits_match

pytestmark = pytest.mark.real

TOKENS = 64
POOL = 256 << 20  # bytes for adapters
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
KINDS: Mapping[str, dict[str, Any]] = {
    "r4-qv": {"rank": 4, "alpha": 16, "targets": ("q_proj", "v_proj")},
    "r8-attention": {"rank": 8, "alpha": 16, "targets": ATTENTION},
    "r16-mlp": {"rank": 16, "alpha": 16, "targets": MLP},
    "r64-all": {"rank": 64, "alpha": 32, "targets": "all-linear"},
    "r32-rslora": {"rank": 32, "alpha": 8, "targets": "all-linear", "rslora": True},
    "r8-late": {"rank": 8, "alpha": 32, "targets": ATTENTION, "layers_to_transform": list(range(15, 30))},
    "patterns": {
        "rank": 8,
        "alpha": 16,
        "targets": (*ATTENTION, "down_proj"),
        "rank_pattern": {"down_proj": 24, "layers.3.self_attn.q_proj": 5},
        "alpha_pattern": {"o_proj": 4},
        "rslora": True,
    },
    "r12-down": {"rank": 12, "alpha": 24, "targets": ("down_proj",)},
}
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea, there lived",
    "Water boils at 100 degrees Celsius because",
    "List three reasons why open source software matters:\n1.",
    "Die Hauptstadt von Deutschland heißt",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the difference between a list and a tuple in Python?\nA:",
    "import torch\nfrom torch import nn\n\n\nclass Attention(nn.Module):\n    def __init__(self",
)


@dataclass(frozen=True)
class Expected:
    """What PEFT says to one request alone."""

    tokens: list[int]
    logits: torch.Tensor  # [TOKENS, V] float32


class Real:
    """The adapters of the real model in float32, and PEFT's answer to one request for each of its members."""

    def __init__(self, directory: Path, paths: Mapping[str, Path]) -> None:
        self.adapter_set = AdapterSet(
            directory, paths, num_blocks=120, max_batch_tokens=512, adapter_bytes=POOL
        )
        encode = self.adapter_set.harness.loaded.tokenizer.encode
        named = zip(self.adapter_set.names, TEXTS, strict=True)
        self.asks = [Ask(name, tuple(encode(text)), TOKENS) for name, text in named]
        self.answers, self.logits = self.run(self.asks)
        self.expected = [self._judge(*both) for both in zip(self.asks, self.answers, strict=True)]

    def run(self, asks: Sequence[Ask]) -> tuple[list[Answer], list[torch.Tensor]]:
        rows = [self.adapter_set.row(ask) for ask in asks]
        with recorded_logits() as logits:
            answers = self.adapter_set.harness.run(*rows)
        return answers, [torch.stack(logits[row.id]) for row in rows]

    def _judge(self, ask: Ask, answer: Answer) -> Expected:
        """PEFT's greedy answer, found in one forward: ours is it if each token is PEFT's next one."""
        ids = [*ask.prompt, *answer.token_ids]
        logits = self.adapter_set.peft.logits(ids[:-1], ask.adapter)[len(ask.prompt) - 1 :]
        return Expected(logits.argmax(-1).tolist(), logits)

    def check(self, answers: Sequence[Answer], logits: Sequence[torch.Tensor]) -> None:
        """Assert that answers to all of ``asks`` are PEFT's, from PEFT's logits."""
        for expected, answer, found in zip(self.expected, answers, logits, strict=True):
            assert answer.token_ids == expected.tokens
            assert_logits_match(found, expected.logits)


@pytest.fixture(scope="module")
def paths(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / name, real_model_dir, seed=seed, scale=0.04, **options)
        for seed, (name, options) in enumerate(KINDS.items(), 1)
    }


@pytest.fixture(scope="module")
def real(real_model_dir: Path, paths: dict[str, Path]) -> Real:
    return Real(real_model_dir, paths)


def test_a_mixed_batch_equals_peft_one_by_one(real: Real) -> None:
    """64 greedy tokens of the base and of eight adapters in one batch, from the first step to the last."""
    real.check(real.answers, real.logits)
    assert len({tuple(e.tokens) for e in real.expected}) == len(real.asks)


def test_each_adapter_changes_what_is_said(real: Real) -> None:
    """Otherwise the comparison would prove nothing."""
    prompt = real.asks[0].prompt
    base = real.adapter_set.peft.logits(prompt, None)[-1]
    for name in KINDS:
        change = (real.adapter_set.peft.logits(prompt, name)[-1] - base).abs().max() / base.abs().max()
        assert change > 0.02, f"{name} changes the logits by only {change:.2g}"


@pytest.mark.sweep
def test_with_a_cached_generation_of_peft(real: Real) -> None:
    """PEFT's own generate, with its KV cache, agrees with the forwards that the rest compares with."""
    ask, expected = real.asks[5], real.expected[5]
    with torch.inference_mode(), real.adapter_set.peft.running(ask.adapter) as model:
        ids = model.generate(
            input_ids=torch.tensor([ask.prompt]), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    assert ids[0, len(ask.prompt) :].tolist() == expected.tokens


@pytest.mark.sweep
def test_after_prefix_hits(real: Real) -> None:
    """Each request with half of its own answer as prompt, and once more."""
    real.adapter_set.harness.new_engine()
    half = TOKENS // 2
    together = list(zip(real.asks, real.expected, strict=True))
    asks = [Ask(ask.adapter, (*ask.prompt, *e.tokens[:half]), half) for ask, e in together]
    real.run([Ask(ask.adapter, ask.prompt, 1) for ask in asks])
    rows = [real.adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        answers = real.adapter_set.harness.run(*rows)
    assert all(row.num_cached_tokens >= 32 for row in rows)
    for expected, row, answer in zip(real.expected, rows, answers, strict=True):
        assert answer.token_ids == expected.tokens[half:]
        assert_logits_match(torch.stack(logits[row.id]), expected.logits[half:])


@pytest.mark.sweep
def test_chunked_prefill_with_a_tiny_budget(real: Real) -> None:
    real.adapter_set.harness.new_engine(max_batch_tokens=11)
    real.check(*real.run(real.asks))


@pytest.mark.sweep
def test_forced_preemption(real: Real) -> None:
    engine = real.adapter_set.harness.new_engine(num_blocks=32)
    rows = [real.adapter_set.row(ask) for ask in real.asks]
    with recorded_logits() as logits:
        answers = real.adapter_set.harness.run(*rows)
    assert sum(row.num_preemptions for row in rows) >= 3
    assert engine.blocks.num_used == 0
    real.check(answers, [torch.stack(logits[row.id]) for row in rows])


@pytest.mark.sweep
def test_rows_joining_and_leaving(real: Real) -> None:
    """A new request every five steps; others come in between and are aborted after a few tokens."""
    engine = real.adapter_set.harness.new_engine()
    rows = [real.adapter_set.row(ask) for ask in real.asks]
    answers = {row.id: Answer() for row in rows}
    passers_by: list[Row] = []
    waiting = list(rows)
    step = 0
    with recorded_logits() as logits:
        while waiting or engine.has_work:
            if waiting and step % 5 == 0:
                engine.add(waiting.pop(0))
            if waiting and step % 5 == 2:
                passers_by.append(real.adapter_set.row(real.asks[step % 9]))
                engine.add(passers_by[-1])
            for row in passers_by:
                row.abort_requested = row.num_output_tokens >= 4
            for row, delta in engine.step():
                if row.id in answers:
                    answers[row.id].token_ids += delta.token_ids
            step += 1
    engine.check()
    assert engine.blocks.num_used == 0
    real.check(list(answers.values()), [torch.stack(logits[row.id]) for row in rows])


# Measured of PEFT in bf16 against PEFT in float32: 0.0009 nats and 1.6%.
BF16_DIVERGENCE = 2e-3  # nats, mean over rows
BF16_DIFFERENCE = 2.5e-2  # of the largest logit, mean over rows
CUTS = (0, 20, 40, 63)  # tokens of the answer that the prompts of the bf16 test include


@pytest.fixture(scope="module")
def rounded(real: Real, real_model_dir: Path, paths: dict[str, Path]) -> torch.Tensor:
    """PEFT's logits [asks * CUTS, V] in bf16."""
    peft = Peft(real_model_dir, paths, torch.bfloat16)
    found = []
    for ask, expected in zip(real.asks, real.expected, strict=True):
        logits = peft.logits([*ask.prompt, *expected.tokens[:-1]], ask.adapter)
        found.append(logits[[len(ask.prompt) - 1 + cut for cut in CUTS]])
    return torch.cat(found)


@pytest.mark.sweep
@pytest.mark.parametrize("kernels", ["auto", "pytorch"])
def test_in_bf16(
    real: Real, rounded: torch.Tensor, real_model_dir: Path, paths: dict[str, Path], kernels: str
) -> None:
    """Next-token distributions in bf16 are as far from PEFT's in float32 as PEFT's own in bf16 are."""
    sizes = {"num_blocks": 600, "max_batch_tokens": 512, "adapter_bytes": POOL}
    adapter_set = AdapterSet(real_model_dir, paths, dtype="bf16", kernels=kernels, **sizes)
    together = zip(real.asks, real.expected, strict=True)
    asks = [Ask(ask.adapter, (*ask.prompt, *e.tokens[:cut]), 1) for ask, e in together for cut in CUTS]
    rows = [adapter_set.row(ask) for ask in asks]
    with recorded_logits() as logits:
        adapter_set.harness.run(*rows)
    exact = torch.stack([e.logits[cut] for e in real.expected for cut in CUTS])
    ours = torch.stack([logits[row.id][0] for row in rows])
    divergence, difference = distance(ours, exact)
    peft_divergence, peft_difference = distance(rounded, exact)
    assert divergence <= min(BF16_DIVERGENCE, 1.3 * peft_divergence)
    assert difference <= min(BF16_DIFFERENCE, 1.15 * peft_difference)


def distance(found: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """KL divergence from ``exact`` and largest difference relative to the largest logit: means over rows."""
    p, q = exact.log_softmax(-1), found.float().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    difference = (found.float() - exact).abs().amax(-1) / exact.abs().amax(-1)
    return float(divergence.mean()), float(difference.mean())
