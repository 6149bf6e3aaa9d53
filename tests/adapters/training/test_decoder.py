"""The fused decoder of the trainer computes what transformers and PEFT do: losses, gradients, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from manylora.adapters.training.data.template import IGNORED
from manylora.adapters.training.decoder.attention import Heads, attend, attend_backward
from manylora.adapters.training.decoder.batch import Packed, bucket_members, learned_of
from manylora.adapters.training.decoder.choice import unfit
from manylora.adapters.training.decoder.decoder import packed
from manylora.adapters.training.decoder.greedy import answer_tokens
from manylora.adapters.training.decoder.head import head_losses
from manylora.adapters.training.decoder.weights import PlainWeight
from manylora.adapters.training.model.forward import greedy, until_end
from manylora.adapters.training.model.targets import linear_layers
from tests.support.tiny_models import tiny_model
from tests.support.training_data import chat
from tests.support.training_runs import config, moved_trainer

UNEVEN = [chat(f"say {n}", f"{n}!" * (1 + n % 6)) for n in range(16)]
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "target_modules": ("q_proj", "v_proj", "down_proj")},
    {"packing": True},
    {"gradient_checkpointing": True},
    {"use_dora": True},
    {
        "use_dora": True,
        "use_rslora": True,
        "target_modules": ("k_proj", "o_proj", "up_proj"),
        "packing": True,
    },
    {"use_dora": True, "gradient_checkpointing": True},
)


def trainer_of(base: Path, root: Path, **changes: Any) -> tuple[Any, Any]:
    """A trainer whose adapter is far from its start, and its session."""
    settings = config(base, root, UNEVEN, **{"eval_split": 0, "batch_size": 6, **changes})
    return moved_trainer(settings, root)


def gradients(trainer: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any], dict[str, torch.Tensor]]:
    """Loss, logged measures and gradients of one batch."""
    trainer.model.zero_grad()
    kept = vars(trainer)  # TRL has no public name for what it will log
    kept["_metrics"]["train"].clear()
    kept["_total_train_tokens"] = 0
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(77))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return float(loss.detach()), dict(kept["_metrics"]["train"]), grads


@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize("family", ["llama", "llama-untied-bias", "qwen2", "qwen3"])
def test_gradients_are_those_of_the_modules(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """In fp32, over rows of uneven lengths: loss, what is logged, and the gradient of every A and B."""
    if changes and family != "llama":
        pytest.skip("options do not depend on the family")
    model_options = {"use_sliding_window": False} if family == "qwen2" else {}
    trainer, _ = trainer_of(tiny_model(tmp_path / "base", family, **model_options), tmp_path, **changes)
    batch = next(iter(trainer.get_train_dataloader()))
    decoder = trainer.decoder
    assert decoder is not None
    own = gradients(trainer, batch)
    trainer.decoder = None
    theirs = gradients(trainer, batch)
    assert own[0] == pytest.approx(theirs[0], rel=1e-5)
    assert own[1] == {key: pytest.approx(value, rel=1e-5) for key, value in theirs[1].items()}
    for name, grad in theirs[2].items():
        assert float((own[2][name] - grad).norm()) <= 1e-4 * float(grad.norm()), name


@pytest.mark.parametrize("use_dora", [False, True])
def test_gradients_on_nf4_are_those_of_the_modules(use_dora: bool, tmp_path: Path) -> None:
    """In fp32, and also after the modules have answered without gradients, when bitsandbytes may repack."""
    base = tiny_model(tmp_path / "base", intermediate_size=128)
    trainer, _ = trainer_of(base, tmp_path, quantization="nf4", use_dora=use_dora)
    batch = next(iter(trainer.get_train_dataloader()))
    decoder = trainer.decoder
    assert decoder is not None
    own = gradients(trainer, batch)
    with torch.no_grad():
        trainer.model.eval()(input_ids=batch["input_ids"])
    again = gradients(trainer, batch)
    trainer.decoder = None
    theirs = gradients(trainer, batch)
    assert own[0] == again[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, grad in theirs[2].items():
        for found in (own, again):
            assert float((found[2][name] - grad).norm()) <= 1e-4 * float(grad.norm()), name


def test_bf16_stays_within_its_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    """The loss to 1e-2 of that in fp32, and gradients that point the same way."""
    results = []
    for dtype in ("fp32", "bf16"):
        (tmp_path / dtype).mkdir()
        trainer, _ = trainer_of(tiny_llama, tmp_path / dtype, dtype=dtype)
        results.append(gradients(trainer, next(iter(trainer.get_train_dataloader()))))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-2)
    for name, grad in results[0][2].items():
        other = results[1][2][name]
        assert other.dtype == torch.float32
        assert float(functional.cosine_similarity(grad.flatten(), other.flatten(), dim=0)) > 0.98, name


def test_dropout_is_peft_s_in_the_mean_and_the_same_again(tiny_llama: Path, tmp_path: Path) -> None:
    """Masks follow torch's random state; their mean gradient comes near that without; evaluation has none."""
    trainer, session = trainer_of(tiny_llama, tmp_path, lora_dropout=0.2)
    batch = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(5)
    first = gradients(trainer, batch)
    torch.manual_seed(5)
    again = gradients(trainer, batch)
    other = gradients(trainer, batch)
    assert first[0] == again[0] != other[0]
    assert all(bool((first[2][name] == grad).all()) for name, grad in again[2].items())
    ids = packed([item.input_ids for item in session.prepared.train.sequences[:2]], trainer.decoder.device)
    with torch.no_grad():
        still = trainer.decoder.hidden(ids)
        drawn = torch.stack([trainer.decoder.hidden(ids, drops=True) for _ in range(400)]).mean(0)
    assert bool((trainer.decoder.hidden(ids) == still).all())
    assert float((drawn - still).norm() / still.norm()) < 0.06


def test_a_sequence_is_the_same_in_any_company(tiny_llama: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_llama, tmp_path)
    decoder = trainer.decoder
    source = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 200, (n,), generator=source).tolist() for n in (5, 90, 1, 33, 34, 60)]
    with torch.no_grad():
        together = decoder.hidden(packed(sequences, decoder.device)).split([len(ids) for ids in sequences])
        for ids, found in zip(sequences, together, strict=True):
            torch.testing.assert_close(decoder.hidden(packed([ids], decoder.device)), found)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([5], [[0]]),
        ([10, 12, 4, 11], [[0, 1, 3], [2]]),
        ([600, 700], [[1], [0]]),
        ([1, 2, 512, 256], [[2, 3], [0, 1]]),
    ],
)
def test_buckets(lengths: list[int], groups: list[list[int]]) -> None:
    assert bucket_members(lengths) == groups


def test_attention_by_blocks_is_that_by_the_full_matrix() -> None:
    """Grouped heads, over buckets, one filled place and several blocks of queries; gradients included."""
    heads = Heads(queries=4, keys=2, width=8, scale=0.3)
    lengths = (3, 2, 530, 7)
    total = sum(lengths)
    batch = Packed(torch.zeros(total, dtype=torch.long), lengths, (slice(0, total),))
    source = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(total, n, 8, generator=source, requires_grad=True) for n in (4, 2, 2, 4))
    whose = torch.repeat_interleave(torch.tensor(lengths))
    mask = (whose[:, None] == whose[None]).tril()
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    expected = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=0.3, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(attend(q, k, v, batch, heads), expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, (q, k, v), grad)
    with torch.no_grad():
        found = attend_backward(grad, (q, k, v), batch, heads)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_fused_loss_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of three rows, with a bias and uneven shares."""
    monkeypatch.setattr("manylora.adapters.training.decoder.head.CHUNK_NUMBERS", 150)
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 16, generator=source, requires_grad=True)
    weight, bias = torch.randn(50, 16, generator=source), torch.randn(50, generator=source)
    targets, shares = torch.randint(0, 50, (11,), generator=source), torch.rand(11, generator=source)
    logits = functional.linear(hidden, weight, bias)
    each = functional.cross_entropy(logits, targets, reduction="none")
    losses = head_losses(hidden, weight, bias, targets, shares)
    torch.testing.assert_close(losses.each, each.detach())
    assert losses.right.tolist() == (logits.argmax(-1) == targets).tolist()
    (expected,) = torch.autograd.grad((each * shares).sum(), hidden)
    (found,) = torch.autograd.grad(2 * losses.total, hidden)
    torch.testing.assert_close(found, 2 * expected)


def test_what_is_learned_never_crosses_sequences() -> None:
    labels = torch.tensor([7, 8, IGNORED, 9, 4, 5])
    learned = learned_of(labels, (2, 2, 2))
    assert learned.rows.tolist() == [0, 2, 4]
    assert learned.targets.tolist() == [8, 9, 5]


def test_answers_are_those_of_generate(tiny_llama: Path, tmp_path: Path) -> None:
    """Greedy, base and adapter in one batch, each up to its own end."""
    trainer, session = trainer_of(tiny_llama, tmp_path)
    items = session.prepared.train.sequences[:5]
    prompts = [item.input_ids[: 4 + 3 * n] for n, item in enumerate(items)]
    ends = frozenset({*session.base.eos_ids, *range(40, 60)})
    both = answer_tokens(trainer.decoder, [*prompts, *prompts], adapted=len(prompts), ends=ends, limit=10)
    options: dict[str, Any] = {"eos_ids": ends, "pad_id": session.base.pad_id, "max_new_tokens": 10}
    expected = greedy(trainer.model, prompts, **options)
    with trainer.model.disable_adapter():
        expected += greedy(trainer.model, prompts, **options)
    assert [until_end(row, ends) for row in both] == expected
    assert len({answer.stopped for answer in expected}) == 2
    assert expected[:5] != expected[5:]


def test_weights_are_in_memory_once(tiny_llama: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_of(tiny_llama, tmp_path)
    layers = [
        getattr(trainer.model.get_base_model().model.layers[0].mlp, n) for n in ("gate_proj", "up_proj")
    ]
    joined = PlainWeight([layer.base_layer for layer in layers]).get()
    assert joined.data_ptr() == trainer.decoder.layers[0].wide.weight.get().data_ptr()
    for layer, part in zip(layers, joined.chunk(2), strict=True):
        assert layer.base_layer.weight.data_ptr() == part.data_ptr()


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {}, "model type gpt2"),
        ("llama-untied-bias", {"modules_to_save": ("lm_head",)}, "modules_to_save"),
        ("mistral", {"sliding_window": 64}, "sliding windows"),
    ],
)
def test_what_trains_through_the_modules(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model_options = {key: value for key, value in changes.items() if key == "sliding_window"}
    changes = {key: value for key, value in changes.items() if key not in model_options}
    base = tiny_model(tmp_path / "base", family, **model_options)
    trainer, session = trainer_of(base, tmp_path, **changes)
    assert trainer.decoder is None
    found = unfit(trainer.model.get_base_model(), [], session.config)
    assert found is not None
    assert reason in found
    assert linear_layers(trainer.model.get_base_model())
