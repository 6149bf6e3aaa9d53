"""Runs from a data file to an adapter: the loss falls, and it is read back and served as trained."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from manylora.adapters.format.provenance import Provenance, read_provenance
from manylora.adapters.training.errors import GateFailed, RunExists, TrainingError
from manylora.adapters.training.run.train import judge
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import open_session
from manylora.adapters.training.trainers.build import build_trainer
from manylora.adapters.training.trainers.sft import SupervisedTrainer
from tests.support.engine_harness import EngineHarness, hf_greedy
from tests.support.training_runs import ROWS, config, losses, run

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3.0}},
    "DoRA": {"use_dora": True},
    "OLoRA": {"init": "olora"},
    "PiSSA": {"init": "pissa_niter_4", "use_rslora": True, "rank_pattern": {"down_proj": 6}},
    "EVA": {"init": "eva", "lora_r": 2},
    "orthogonal": {"init": "orthogonal", "target_modules": "attention"},
    "LoRA+ packed": {"loraplus_ratio": 4.0, "packing": True, "target_modules": "mlp", "max_length": 96},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_served_as_trained(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    result = run(config(tiny_llama, tmp_path, **KINDS[kind]))
    curve = losses(result)
    assert curve[-1] < 0.8 * curve[0]
    assert result.baseline.adapter["loss"] < 0.8 * result.baseline.base["loss"]
    assert result.gate.difference < result.gate.allowed < 0.1 < result.gate.effect
    plain = AutoPeftModelForCausalLM.from_pretrained(result.adapter)  # nothing of ours
    harness = EngineHarness(tiny_llama)
    prompt = harness.loaded.tokenizer.encode_chat([{"role": "user", "content": "say 30"}])
    (answer,) = harness.run(harness.sequence(prompt, (harness.load(result.adapter), 1.0), max_tokens=12))
    assert read_provenance(result.adapter) == Provenance("none", harness.base.fingerprint)
    assert answer.token_ids == hf_greedy(plain.eval(), prompt, 12)
    assert answer.token_ids != hf_greedy(AutoModelForCausalLM.from_pretrained(tiny_llama), prompt, 12)


@pytest.mark.slow
def test_what_lies_in_the_folder(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, tmp_path, sample_prompts=["say 99"], max_steps=4, eval_steps=2)
    result = run(settings)
    files = {path.name for path in result.adapter.iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"}
    assert "chat_template.jinja" in files
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    card = (result.adapter / "README.md").read_text()
    for text in (
        "SHA-256",
        "| loss |",
        "learning_rate: 0.01",
        "transformers 5.",
        "| step | loss | eval loss |",
    ):
        assert text in card
    root = settings.output_dir
    assert sorted(path.name for path in root.iterdir()) == [
        "adapter", "checkpoints", "curves.png", "metrics.jsonl", "report.html", "run.json", "run.yaml",
    ]  # fmt: skip
    page = (root / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "say 99" in page
    assert "http" not in page.replace("http-equiv", "")
    kinds = [json.loads(line)["kind"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["train", "train", "eval", "sample", "train", "train", "eval", "sample"]
    with pytest.raises(RunExists, match="--resume goes on with it, --overwrite replaces it"):
        run(settings)
    assert run(settings, overwrite=True).metrics[0]["loss"] == result.metrics[0]["loss"]


def test_one_step_is_the_hand_written_loss(tiny_llama: Path, tmp_path: Path) -> None:
    """Gradients of the first step, over two batches of uneven lengths, equal those of a loss by hand."""
    rows = [*ROWS[:6], {"messages": [{"role": "user", "content": "x" * 40}, ROWS[0]["messages"][1]]}, ROWS[7]]
    settings = config(tiny_llama, tmp_path, rows, max_steps=1, gradient_accumulation_steps=2, eval_split=0)
    session = open_session(settings, Console(quiet=True))
    trainer, _ = build_trainer(session, [], MetricsLog(tmp_path / "m.jsonl"))
    batches = list(trainer.get_train_dataloader())
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=count)
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        ):
            length = int(mask.sum())
            logits = trainer.model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
            for position in range(1, length):
                if labels[position] != -100:
                    total = total - logits[position - 1, labels[position]] / count
    total.backward()
    assert len(grads) == 28
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_packed_rows_do_not_see_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, tmp_path, packing=True, eval_split=0, batch_size=2)
    session = open_session(settings, Console(quiet=True))
    trainer, _ = build_trainer(session, [], MetricsLog(tmp_path / "m.jsonl"))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    labels = batch["labels"]
    logits = trainer.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0]
    starts = [*(batch["position_ids"][0] == 0).nonzero().squeeze(1).tolist(), labels.shape[1]]
    assert len(starts) > 5
    for start, end in itertools.pairwise(starts):
        alone = trainer.model(input_ids=batch["input_ids"][:, start:end]).logits[0]
        torch.testing.assert_close(logits[start:end], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_gate_refuses_what_was_not_trained(tiny_llama: Path, tmp_path: Path) -> None:
    """A file that lost a layer, or whose scale changed, is not published."""
    settings = config(tiny_llama, tmp_path, max_steps=4, eval_split=0)
    result = run(settings)
    session = open_session(settings, Console(quiet=True))
    result.adapter.rename(session.folder.partial)
    weights = session.folder.partial / "adapter_model.safetensors"
    trained = _trained(session)
    judge(session, trained, Console(quiet=True))
    tensors = load_file(weights)
    broken = {key: value * (0 if "layers.1.mlp" in key else 1) for key, value in tensors.items()}
    save_file(broken, weights)
    with pytest.raises(GateFailed, match="is not what was trained"):
        judge(session, trained, Console(quiet=True))
    save_file(tensors, weights)
    file = session.folder.partial / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 7'))
    with pytest.raises(GateFailed, match="is not what was trained"):
        judge(session, trained, Console(quiet=True))


def _trained(session: Any) -> Any:
    from manylora.adapters.training.gate.publish_gate import gate_logits
    from manylora.adapters.training.run.train import Trained

    model = session.loader.load_finished(session.folder.partial).model
    assert isinstance(model, PeftModel)
    return Trained(gate_logits(model, session), 4, 1.0, 1)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SupervisedTrainer.compute_loss

    def overflow(self: Any, model: Any, *args: Any, **options: Any) -> Any:
        loss = original(self, model, *args, **options)
        return loss * float("inf") if self.state.global_step == 2 else loss

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", overflow)
    settings = config(tiny_llama, tmp_path)
    with pytest.raises(TrainingError, match="the train loss at step 3 is inf: lower the learning rate"):
        run(settings)
    assert not (settings.output_dir / "adapter").exists()


@pytest.mark.slow
def test_early_stopping_keeps_the_best(tiny_llama: Path, tmp_path: Path) -> None:
    """With a rate at which the held-out loss rises again."""
    settings = config(
        tiny_llama, tmp_path, ROWS[:8], early_stopping_patience=1, eval_split=0.4, max_steps=80, eval_steps=4,
        learning_rate=0.02, lr_scheduler="constant",
    )  # fmt: skip
    result = run(settings)
    evals = losses(result, "eval_loss")
    assert result.steps < 80
    assert evals[-1] > min(evals)
    assert result.baseline.adapter["loss"] == pytest.approx(min(evals), rel=1e-3)
