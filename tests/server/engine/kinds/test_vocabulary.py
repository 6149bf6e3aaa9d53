"""Embeddings and heads of adapters equal PEFT's, in one batch with others, tied and untied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from manylora.adapters.format.vocabulary.changes import TableDelta
from manylora.server.kernels.inputs import AdapterPages
from tests.support.adapter_set import prompt_of, recorded_logits
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.peft_oracle import Peft, assert_logits_match, read
from tests.support.tiny_models import VOCAB, tiny_model
from tests.support.vocabulary_adapters import GROWN, make, peft_logits

NAMES = {"llama": ("embed_tokens", "lm_head", "q_proj"), "gpt2": ("wte", "lm_head", "c_attn")}
NAMES |= dict.fromkeys(("gemma2", "gemma3", "granite"), NAMES["llama"])


def kinds_of(family: str, *, tied: bool) -> dict[str, dict[str, Any]]:
    """What to do to the tables, by a name for it; ``rows`` resizes the model first."""
    embedding, head, linear = NAMES[family]
    kinds: dict[str, dict[str, Any]] = {
        "embedding": {"target_modules": [linear, embedding]},
        "head": {"target_modules": [linear, head]},
        "both": {"target_modules": [embedding, head], "use_rslora": True},
        "only-embedding": {"target_modules": [embedding]},
        "saved-head": {"target_modules": [linear], "modules_to_save": [head]},
        "saved-embedding": {"target_modules": [linear], "modules_to_save": [embedding]},
        "saved-both": {"target_modules": [linear], "modules_to_save": [embedding, head]},
        "tokens": {"target_modules": [linear], "trainable_token_indices": [3, 70, 5]},
        "tokens-of-each": {
            "target_modules": [linear], "trainable_token_indices": {embedding: [3, 70], head: [4]},
        },
        "tokens-of-head": {"target_modules": [linear], "trainable_token_indices": {head: [4, 200]}},
        "grown-both": {"target_modules": [linear], "modules_to_save": [embedding, head], "rows": GROWN},
        "grown-tokens": {
            "target_modules": [linear], "trainable_token_indices": [3, VOCAB + 1], "rows": GROWN,
        },
    }  # fmt: skip
    if tied:
        kinds |= {
            "tied-lora": {"target_modules": [embedding, linear], "ensure_weight_tying": True},
            "tied-saved": {
                "target_modules": [linear], "modules_to_save": [head], "ensure_weight_tying": True,
            },
            "grown-head": {"target_modules": [linear, head], "rows": GROWN},
            "grown-embedding": {"target_modules": [embedding], "rows": GROWN},
        }  # fmt: skip
    return kinds


class Tables:
    """A tiny model with one adapter of each kind resident, and a plain one."""

    def __init__(self, root: Path, family: str, *, tied: bool, **options: Any) -> None:
        self.directory = tiny_model(root / "model", family, tie_word_embeddings=tied)
        self.rows: dict[str, int | None] = {"plain": None}
        self.paths = {
            "plain": write_adapter(root / "plain", self.directory, seed=1, scale=0.2, targets="all-linear")
        }
        for seed, (name, kind) in enumerate(kinds_of(family, tied=tied).items(), 10):
            self.rows[name] = kind.get("rows")
            self.paths[name] = make(root / name, self.directory, seed=seed, **kind)
        self.harness = EngineHarness(self.directory, **options)
        self.pages: dict[str, AdapterPages] = {n: self.harness.load(p) for n, p in self.paths.items()}

    def prompt(self, name: str | None, length: int) -> tuple[int, ...]:
        """Random tokens, the trained and the added ones among them."""
        prompt = (3, 70, 5, 4, 200, *prompt_of(length, length))
        grown = name is not None and self.rows[name] is not None
        return (*prompt, VOCAB + 1, GROWN - 1, 9) if grown else prompt

    def expected(self, name: str | None, ids: list[int]) -> torch.Tensor:
        if name is None:
            return Peft(self.directory, {}).logits(ids, None)
        return peft_logits(self.directory, self.paths[name], ids, self.rows[name])


CASES = [
    ("llama", True, False), ("llama", False, False), ("llama", True, True), ("llama", False, True),
    ("gpt2", True, True), ("gemma3", True, True), ("gemma2", True, False), ("granite", False, False),
]  # fmt: skip
SELDOM = ("gemma2", "granite")  # whose logits are bent and scaled behind the head


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.sweep] if case[0] in SELDOM else []) for case in CASES],
    ids=[f"{f}-{'tied' if t else 'untied'}-{'generic' if g else 'fused'}" for f, t, g in CASES],
)  # fmt: skip
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    family, tied, generic = request.param
    return Tables(tmp_path_factory.mktemp(family), family, tied=tied, generic=generic, max_batch_tokens=64)


@pytest.mark.slow
def test_a_mixed_batch_equals_peft_one_by_one(tables: Tables) -> None:
    """In chunks, all kinds at once, with the base and plain LoRA between them; greedy and by logits."""
    tables.harness.new_engine()
    names: list[str | None] = [None, *tables.paths]
    prompts = [tables.prompt(name, 5 + 3 * i) for i, name in enumerate(names)]
    rows = [
        tables.harness.sequence(prompt, *([] if name is None else [(tables.pages[name], 1.0)]), max_tokens=4)
        for name, prompt in zip(names, prompts, strict=True)
    ]
    with recorded_logits() as logits:
        answers = tables.harness.run(*rows)
    for name, prompt, row, answer in zip(names, prompts, rows, answers, strict=True):
        expected = tables.expected(name, [*prompt, *answer.token_ids[:-1]])[len(prompt) - 1 :]
        assert_logits_match(torch.stack(logits[row.id]), expected)
        assert expected.argmax(-1).tolist() == answer.token_ids


@pytest.mark.slow
def test_each_kind_changes_the_logits_in_a_way_of_its_own(tables: Tables) -> None:
    """Otherwise the comparison above would prove nothing."""
    prompt = list(tables.prompt(None, 8))
    found = {name: tables.expected(name, prompt)[-1, :VOCAB] for name in (None, *tables.paths)}
    scale = max(float(row.abs().max()) for row in found.values())
    items = list(found.items())
    for i, (_, one) in enumerate(items):
        for _, other in items[:i]:
            assert float((one - other).abs().max()) > 0.005 * scale


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(tmp_path_factory.mktemp("llama"), "llama", tied=True)


def answer_of(tables: Tables, prompt: tuple[int, ...], *names: str, **params: Any) -> tuple[list[int], int]:
    members = [(tables.pages[name], 1.0) for name in names]
    row = tables.harness.sequence(prompt, *members, **params)
    (answer,) = tables.harness.run(row)
    return answer.token_ids, row.num_cached_tokens


@pytest.mark.slow
def test_a_mix_is_the_weighted_sum_of_the_changes(llama: Tables) -> None:
    """The table deltas of three members and one plain LoRA, against the base's logits written out."""
    weights = {"saved-embedding": 0.5, "tokens": -0.5, "grown-both": 0.25, "plain": 1.0}
    prompt = (3, 70, 5, VOCAB + 1, *prompt_of(12, 1))
    row = llama.harness.sequence(prompt, *((llama.pages[n], w) for n, w in weights.items()), max_tokens=3)
    with recorded_logits() as logits:
        (answer,) = llama.harness.run(row)
    model = summed_tables(llama, weights)
    expected = model(input_ids=torch.tensor([[*prompt, *answer.token_ids[:-1]]]), use_cache=False).logits[0]
    assert_logits_match(torch.stack(logits[row.id]), expected[len(prompt) - 1 :].detach())


def summed_tables(tables: Tables, weights: dict[str, float]) -> Any:
    """The base, resized, with every member's change added to weights and tables by hand."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        tables.directory, dtype=torch.float32, tie_word_embeddings=False
    ).eval()
    base = model.get_input_embeddings().weight.detach().clone()
    model.lm_head.weight = torch.nn.Parameter(base.clone())
    model.resize_token_embeddings(GROWN, mean_resizing=False)
    whole = torch.cat([base, torch.zeros(GROWN - VOCAB, base.shape[1])])
    changed = {"embedding": whole.clone(), "head": whole.clone()}
    for name, weight in weights.items():
        artifact = read(tables.paths[name], tables.harness.base)
        for path, delta in artifact.delta.items():
            model.get_submodule(path).weight.data += weight * delta.scaling * (delta.b @ delta.a)
        for side in ("embedding", "head"):
            table: TableDelta | None = getattr(artifact.vocabulary, side) if artifact.vocabulary else None
            if table is None:
                continue
            own = whole.clone()
            if table.table is not None:
                own[: len(table.table)] = table.table
            if table.rows is not None:
                own[list(table.tokens)] = table.rows
            changed[side] += weight * (own - whole)
    model.get_input_embeddings().weight.data = changed["embedding"]
    model.lm_head.weight.data = changed["head"]
    return model


@pytest.mark.slow
def test_only_the_rows_of_a_larger_vocabulary_draw_from_it(llama: Tables) -> None:
    """What the base draws beside them has the bits of what it draws alone."""
    harness = llama.harness
    params: dict[str, Any] = {"max_tokens": 6, "temperature": 1.5, "seed": 5, "logprobs": 3, "top_p": 0.9}
    alone = answer_of(llama, prompt_of(9), **params)[0]
    harness.new_engine()
    grown = harness.sequence(
        (3, VOCAB + 1), (llama.pages["grown-both"], 1.0), max_tokens=6, logit_bias={GROWN - 1: 100.0},
        logprobs=3,
    )  # fmt: skip
    row = harness.sequence(prompt_of(9), **params)
    first, second = harness.run(grown, row)
    assert set(first.token_ids) == {GROWN - 1}
    assert second.token_ids == alone
    assert all(t < VOCAB for d in second.deltas for lp in d.logprobs for t, _ in lp.top)


def test_prompt_scores_of_added_tokens(llama: Tables) -> None:
    prompt = (*prompt_of(8), GROWN - 1, VOCAB + 1, 3)
    row = llama.harness.sequence(prompt, (llama.pages["grown-both"], 1.0), max_tokens=1, prompt_logprobs=0)
    (answer,) = llama.harness.run(row)
    table = llama.expected("grown-both", list(prompt)).log_softmax(-1)
    wanted = table[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    found = [score.logprob for score in answer.last.prompt_logprobs if score is not None]
    assert found == pytest.approx(wanted, abs=1e-3)


def test_prefix_blocks_are_not_shared_with_other_tables(llama: Tables) -> None:
    llama.harness.new_engine()
    prompt = (3, 70, 5, *prompt_of(50, 3))
    cached: dict[str | None, list[int]] = {}
    for name in (None, "tokens", "saved-embedding", "head", None, "tokens", "head"):
        tokens, count = answer_of(llama, prompt, *([] if name is None else [name]), max_tokens=2)
        expected = llama.expected(name, [*prompt, tokens[0]])[-2:]
        assert expected.argmax(-1).tolist() == tokens
        cached.setdefault(name, []).append(count)
    assert cached == {None: [0, 48], "tokens": [0, 48], "saved-embedding": [0], "head": [0, 48]}


def test_copies_of_the_base_take_no_adapter_memory(llama: Tables) -> None:
    """PEFT saves the base's table beside LoRA on it."""
    artifact = read(llama.paths["embedding"], llama.harness.base)
    assert artifact.vocabulary is not None
    assert artifact.vocabulary.embedding is not None
    assert artifact.vocabulary.embedding.table is not None
    pages = llama.pages["embedding"].vocabulary
    assert pages is not None
    assert pages.embedding is not None
    assert len(pages.embedding.tokens) == 0
    assert len(llama.pages["saved-both"].vocabulary.head.tokens) == VOCAB  # type: ignore[union-attr]


def test_a_step_without_tables_makes_no_plan(llama: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("manylora.server.kernels.reference.vocabulary.VocabularyPlan.__init__", never)
    answer_of(llama, prompt_of(5), "plain", max_tokens=2)
    with pytest.raises(AssertionError):
        answer_of(llama, prompt_of(5), "tokens", max_tokens=2)


@pytest.mark.slow
def test_in_bf16_on_the_native_kernels(tmp_path: Path) -> None:
    """As close to PEFT in float32 as plain LoRA is, whatever the adapter does to the tables."""
    tables = Tables(tmp_path, "llama", tied=False, dtype="bf16")
    if not getattr(tables.harness.decoder, "native", False):
        pytest.skip("no native kernels on this machine")
    errors = {}
    rows = {
        name: tables.harness.sequence(tables.prompt(name, 9), (tables.pages[name], 1.0), max_tokens=1)
        for name in tables.paths
    }
    with recorded_logits() as logits:
        tables.harness.run(*rows.values())
    for name, row in rows.items():
        want = tables.expected(name, list(row.token_ids[: row.num_prompt_tokens]))[-1]
        errors[name] = float((logits[row.id][0].float() - want).norm() / want.norm())
    assert max(errors.values()) < max(0.05, 2 * errors["plain"]), errors
