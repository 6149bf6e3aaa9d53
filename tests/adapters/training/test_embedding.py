"""Adapters that embed: trained, judged, resumed, and served as they were trained."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction
from safetensors.torch import load_file

from manylora.adapters.format.pooling import Pooling, PoolingConfig, read_pooling, write_pooling
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import GateFailed, Interrupted, TrainingConfigError
from manylora.adapters.training.methods import FULL, LORA, METHODS, PROMPTS
from manylora.adapters.training.model.base import find_base
from manylora.adapters.training.session.init_adapter import find_init_adapter
from manylora.adapters.training.trainers.callbacks import StopCallback
from tests.support.running_server import Running, serving, tiny_service
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tests.support.training_runs import config, losses, run

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijkl"
PAIRS = [{"anchor": f"ask {a}{n}", "positive": f"{a}{a} {n} it is"} for a in LETTERS for n in range(3)]
SCORED = [
    {"sentence1": f"{a} one", "sentence2": f"{b} two", "score": float(a == b)} for a in "abcd" for b in "abcd"
]
KINDS = [m for m in METHODS if m not in (LORA, FULL, *PROMPTS)]


def settings(base: Path, root: Path, rows: Any = PAIRS, **changes: Any) -> Any:
    options = {"task": "embedding", "eval_split": 0.2, "max_steps": 16, **changes}
    return config(base, root, rows, **options)


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny_service(tiny_llama, tmp_path_factory.mktemp("data"), dtype="fp32")) as running:
        yield running


def served(server: Running, name: str, texts: list[str]) -> np.ndarray:
    answer = server.client().embeddings.create(model=name, input=texts)
    return np.array([entry.embedding for entry in answer.data])


def by_peft(adapter: Path, text: str) -> torch.Tensor:
    """The hidden states [T, D] of what plain PEFT loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on its kinds
        model = AutoPeftModelForFeatureExtraction.from_pretrained(adapter, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(
            input_ids=torch.tensor([byte_tokenizer().encode(text)])
        ).last_hidden_state[0]
    return found


@pytest.mark.parametrize("pooling", ["last", pytest.param("mean", marks=pytest.mark.sweep)])
def test_it_learns_and_is_served_as_trained(
    pooling: str, server: Running, tiny_llama: Path, tmp_path: Path
) -> None:
    url = str(server.http().base_url)
    vectors = "raw" if pooling == "mean" else "auto"
    made = settings(
        tiny_llama,
        tmp_path,
        name=pooling,
        publish=url,
        embed_pooling=pooling,
        embed_vectors=vectors,
        eval_split=0.4,
    )
    result = run(made)
    base, adapter = result.baseline.base, result.baseline.adapter
    assert adapter["loss"] < 0.9 * base["loss"]
    assert {"accuracy@1", "recall@10"} <= adapter.keys()
    assert 0 <= adapter["accuracy@1"] <= adapter["recall@10"] <= 1
    assert min(losses(result)[-3:]) < losses(result)[0]
    assert adapter["loss"] == pytest.approx(min(losses(result, "eval_loss")), rel=1e-4)  # the kept step's
    assert all(0 <= value <= 1 for value in losses(result, "eval_accuracy"))
    assert result.gate.effect > 10 * result.gate.difference
    assert read_pooling(result.adapter) == PoolingConfig(Pooling(pooling.upper()), vectors == "auto")
    assert f"A text's vector: {pooling}" in (result.adapter / "README.md").read_text()
    texts = ["ask c2", "a longer text than those that were learned"]
    for text, found in zip(texts, served(server, pooling, texts), strict=True):
        states = by_peft(result.adapter, text)
        expected = states[-1] / states[-1].norm() if pooling == "last" else states.mean(0)
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-3, rtol=2e-3)


@pytest.mark.sweep
def test_scored_pairs(tiny_llama: Path, tmp_path: Path) -> None:
    result = run(
        settings(tiny_llama, tmp_path, SCORED, eval_split=0.3, max_steps=20, eval_steps=10, save_steps=10)
    )
    base, adapter = result.baseline.base, result.baseline.adapter
    assert adapter["loss"] < 0.5 * base["loss"]
    assert adapter["loss"] == pytest.approx(min(losses(result, "eval_loss")), rel=1e-4)
    assert -1 <= adapter["rank correlation"] <= 1


@pytest.mark.sweep
def test_negatives_and_a_symmetric_loss(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [row | {"negatives": ["zz 1 it is", row["positive"] + "!"]} for row in PAIRS]
    plain = run(settings(tiny_llama, tmp_path, rows, name="plain", max_steps=2, keep="last"))
    both = run(settings(tiny_llama, tmp_path, rows, name="both", max_steps=2, embed_symmetric=True))
    without = run(settings(tiny_llama, tmp_path, name="without", max_steps=2))
    assert len({losses(one)[0] for one in (plain, both, without)}) == 3
    assert losses(plain)[0] > losses(without)[0]  # there is more to be told from


@pytest.mark.sweep
def test_a_stopped_run_goes_on_as_if_it_had_not(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "eval_steps": 3, "lora_dropout": 0.1}
    whole = run(settings(tiny_llama, tmp_path, name="whole", **changes))
    ends = StopCallback.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 4:
            self.signal = signal.SIGTERM
        ends(self, args, state, control, **rest)

    stopped = settings(tiny_llama, tmp_path, name="stopped", **changes)
    with monkeypatch.context() as patched:
        patched.setattr(StopCallback, "on_step_end", stop)
        with pytest.raises(Interrupted):
            run(stopped)
    result = run(stopped, resume=True)
    for key in ("loss", "eval_loss", "accuracy", "eval_accuracy"):
        assert losses(result, key) == losses(whole, key)
    one, other = (load_file(r.adapter / "adapter_model.safetensors") for r in (whole, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.sweep
def test_one_batch_or_two_of_half_give_one_mean(tiny_llama: Path, tmp_path: Path) -> None:
    """Of scored pairs, whose rows have nothing to do with each other; the last batch is a short one."""
    changes: dict[str, Any] = {"eval_split": 0, "max_steps": 4, "keep": "last"}
    rows = SCORED[:14]
    one = run(settings(tiny_llama, tmp_path, rows, name="one", batch_size=4, **changes))
    two = run(
        settings(
            tiny_llama, tmp_path, rows, name="two", batch_size=2, gradient_accumulation_steps=2, **changes
        )
    )
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["embed_tokens", "norm"], "dtype": "bf16"},
        {"init": "olora", "learning_rate": 1e-3},
        {"use_dora": True, "gradient_checkpointing": True},
    ],
    ids=["modules_to_save", "olora", "dora"],
)
def test_options_of_a_lora(changes: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    result = run(settings(tiny_llama, tmp_path, max_steps=4, keep="last", **changes))
    assert result.gate.difference <= result.gate.allowed


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.*MatMul8bitLt.*", "ignore:.*inputs will be cast.*")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_bases(kind: str, tmp_path: Path) -> None:
    wide = tiny_model(tmp_path / "base", intermediate_size=128)
    result = run(settings(wide, tmp_path, quantization=kind, dtype="bf16", max_steps=8))
    assert result.baseline.adapter["loss"] < result.baseline.base["loss"]
    assert result.gate.difference <= result.gate.allowed


@pytest.mark.sweep
@pytest.mark.parametrize("method", KINDS)
def test_every_kind_embeds(method: str, server: Running, tiny_llama: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "trainable_tokens": {"method_option": {"token_indices": list(range(32, 127))}},
        "vera": {"lora_r": 64},
        "pvera": {"lora_r": 64},
    }
    given = settings(tiny_llama, tmp_path, method=method, max_steps=6, keep="last", **own.get(method, {}))
    values = given.model_dump(exclude_unset=True)
    for name in {"lora_r", "learning_rate", "dtype"} - own.get(method, {}).keys():
        values.pop(name)
    values |= {"publish": str(server.http().base_url), "name": method}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on its kinds
        result = run(TrainConfig(**values))
    assert result.gate.difference <= result.gate.allowed
    states = by_peft(result.adapter, "ask c2")
    expected = (states[-1] / states[-1].norm()).numpy()
    np.testing.assert_allclose(served(server, method, ["ask c2"])[0], expected, atol=2e-3)


@pytest.mark.sweep
def test_going_on_from_one_that_embeds(tiny_llama: Path, tmp_path: Path) -> None:
    """It pools as that one does, and begins where it ended."""
    pooling = {"embed_pooling": "mean", "embed_vectors": "raw"}
    first = run(settings(tiny_llama, tmp_path, name="first", keep="last", **pooling))
    values = settings(tiny_llama, tmp_path, name="second", keep="last").model_dump(exclude_unset=True)
    del values["lora_r"]
    values |= {"init_adapter": str(first.adapter), "max_steps": 2, "learning_rate": 1e-6}
    second = run(TrainConfig(**values))
    assert read_pooling(second.adapter) == PoolingConfig(Pooling.MEAN, normalize=False)
    assert second.baseline.adapter["loss"] == pytest.approx(first.baseline.adapter["loss"], rel=1e-2)
    with pytest.raises(TrainingConfigError, match="FEATURE_EXTRACTION', which task sft does not train"):
        find_init_adapter(TrainConfig(**values | {"task": "sft"}), find_base(str(tiny_llama)))


def test_one_that_would_pool_otherwise_is_not_published(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_pooling: PoolingConfig, width: int, directory: Path) -> None:
        write_pooling(PoolingConfig(Pooling.MEAN), width, directory)

    monkeypatch.setattr("manylora.adapters.training.run.export.write_pooling", other)
    with pytest.raises(GateFailed, match="beside the adapter pools otherwise"):
        run(settings(tiny_llama, tmp_path, max_steps=4, eval_split=0))
    assert not (tmp_path / "out" / "adapter").exists()
