"""DoRA in the fused decoder, and in jobs that share a base, is PEFT's: losses, gradients, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from manylora.adapters.training.decoder.gains import gains_of
from manylora.adapters.training.decoder.projection import Member, Projection
from manylora.adapters.training.decoder.weights import PlainWeight, squared_norms
from manylora.adapters.training.model.pairs import lora_pairs
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import Session, open_session
from manylora.adapters.training.trainers.build import build_trainer
from tests.support.tiny_models import tiny_model
from tests.support.training_data import chat
from tests.support.training_runs import config, moved_trainer, run

UNEVEN = [chat(f"say {n}", f"{n}!" * (1 + n % 6)) for n in range(16)]
MAGNITUDE = "lora_magnitude_vector"
ZEROED = ("v_proj", "o_proj", "up_proj")  # not q and k: a product of two zeros has no gradient


def trainer_of(base: Path, root: Path, **changes: Any) -> tuple[Any, Session]:
    """A trainer of a DoRA that is away from its start, and its session."""
    root.mkdir(exist_ok=True)
    settings = config(base, root, UNEVEN, **{"eval_split": 0, "batch_size": 5, "use_dora": True, **changes})
    return moved_trainer(settings, root)


def base_with_biases(directory: Path, family: str, **options: Any) -> Path:
    """A tiny model whose biases, where it has any, are not 0."""
    file = tiny_model(directory, family, **options) / "model.safetensors"
    source = torch.Generator().manual_seed(4)
    tensors = {
        name: value + torch.randn(value.shape, generator=source) if name.endswith(".bias") else value
        for name, value in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return directory


def gradients(trainer: Any, *, decoder: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the first batch, by ``decoder`` or, where it is None, by PEFT's modules."""
    trainer.decoder = decoder
    trainer.model.zero_grad()
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(50))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert any(MAGNITUDE in name for name in grads)
    return float(loss.detach()), grads


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert float((found[name] - grad).norm()) <= tolerance * float(grad.norm()), name


@pytest.mark.parametrize("family", ["llama-untied-bias", "qwen2", "qwen3"])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_gradients_with_biases_and_magnitudes_of_zero(family: str, has_zeros: bool, tmp_path: Path) -> None:
    """An output that is multiplied by 0 tells nothing of what it was, yet its magnitude has a gradient."""
    model_options = {"use_sliding_window": False} if family == "qwen2" else {}
    trainer, _ = trainer_of(base_with_biases(tmp_path / "base", family, **model_options), tmp_path)
    if has_zeros:
        for name, parameter in trainer.model.named_parameters():
            if MAGNITUDE in name and any(layer in name for layer in ZEROED):
                parameter.data[3:6] = 0.0
    assert trainer.decoder is not None
    own = gradients(trainer, decoder=trainer.decoder)
    theirs = gradients(trainer, decoder=None)
    assert own[0] == pytest.approx(theirs[0], rel=1e-5)
    assert_same(own[1], theirs[1])
    if has_zeros:
        zeros = [g[3:6] for n, g in own[1].items() if MAGNITUDE in n and any(layer in n for layer in ZEROED)]
        assert all(float(grad.abs().min()) > 0 for grad in zeros)


def test_steps_are_those_of_the_modules_and_so_is_what_is_saved(tiny_llama: Path, tmp_path: Path) -> None:
    """Eight steps of the optimizer; the magnitudes move, and are in the file under PEFT's names."""
    options: dict[str, Any] = {"use_dora": True, "max_steps": 8, "lora_r": 3, "loraplus_ratio": 4.0}
    states = []
    for name in ("own", "theirs"):
        (tmp_path / name).mkdir()
        settings = config(tiny_llama, tmp_path / name, **options)
        session = open_session(settings, Console(quiet=True))
        trainer, _ = build_trainer(session, [], MetricsLog(tmp_path / f"{name}.jsonl"))
        assert trainer.decoder is not None
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if MAGNITUDE in n}
        if name == "theirs":
            trainer.decoder = None
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        states.append(
            (losses, {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
        )
        assert all(not torch.equal(states[-1][1][n], before) for n, before in start.items())
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-4)
    assert_same(states[0][1], states[1][1], 2e-3)


def test_what_is_published_is_peft_s(tiny_llama: Path, tmp_path: Path) -> None:
    """It passes the gate, which reads it with plain PEFT, and its magnitudes are kept in float32."""
    result = run(config(tiny_llama, tmp_path, use_dora=True, sample_tokens=4))
    tensors = load_file(result.adapter / "adapter_model.safetensors")
    magnitudes = {key: value for key, value in tensors.items() if MAGNITUDE in key}
    assert len(magnitudes) == 2 * 7
    assert {value.dtype for value in magnitudes.values()} == {torch.float32}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_bf16_and_nf4_stay_within_their_rounding(quantization: str, tmp_path: Path) -> None:
    """As far from PEFT's modules as two roundings are; magnitudes included."""
    base = tiny_model(tmp_path / "base", intermediate_size=128)
    trainer, _ = trainer_of(base, tmp_path, dtype="bf16", quantization=quantization)
    assert trainer.decoder is not None
    own = gradients(trainer, decoder=trainer.decoder)
    theirs = gradients(trainer, decoder=None)
    assert own[0] == pytest.approx(theirs[0], rel=1e-2)
    for name, grad in theirs[1].items():
        assert own[1][name].dtype == torch.float32
        assert float(functional.cosine_similarity(grad.flatten(), own[1][name].flatten(), dim=0)) > 0.98, name


class _Fixed(nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self._mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """``x``, masked."""
        return x * self._mask


class _Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "custom"}
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of the three, one behind the other."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_is_peft_s_mask_by_mask(use_dora: bool) -> None:
    """A layer of the group without an adapter, uneven ranks, given masks: outputs and all gradients."""
    torch.manual_seed(0)
    base = _Three()
    options: dict[str, Any] = {"rank_pattern": {"q": 3}, "use_dora": use_dora, "lora_dropout": 0.3}
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q", "v"], **options))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    pairs = dict(lora_pairs(model))
    layers = [getattr(base, name) for name in "qkv"]
    plain = [getattr(layer, "base_layer", layer) for layer in layers]
    members = (Member(0, pairs["q"]), Member(12, pairs["v"]))
    bias = torch.cat([layer.bias.detach() for layer in plain])
    projection = Projection(PlainWeight(plain), bias, (members,), 0.3, is_output_kept=True)
    x, grad = torch.randn(9, 12, requires_grad=True), torch.randn(9, 16)
    source = torch.Generator().manual_seed(11)
    adapted: list[Any] = [base.q, base.v]
    for layer in adapted:
        mask = (torch.rand(x.shape, generator=source) < 0.7).float() / 0.7
        layer.lora_dropout["default"] = _Fixed(mask)
    expected = model.train()(x)
    trained = projection.parameters
    assert len(trained) == (6 if use_dora else 4)
    wanted = torch.autograd.grad(expected, [x, *trained], grad)
    with torch.no_grad():
        y, kept = projection.forward(x.detach(), (slice(0, 9),), 11)
        dx, found = projection.backward(grad, x.detach(), y, (slice(0, 9),), kept, wanted=True)
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(dx, wanted[0])
    for one, other in zip(found, wanted[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_norms_without_the_matrix_are_those_of_the_matrix() -> None:
    """Also where the adapter turns most of a weight back; rows that no adapter is on keep a gain of 1."""
    source = torch.Generator().manual_seed(2)
    a, b = torch.randn(4, 40, generator=source), torch.randn(9, 4, generator=source)
    weight = torch.randn(9, 40, generator=source) * 0.1 - b @ a
    b[6:] = 0.0
    magnitude = torch.rand(6, generator=source)
    gains = gains_of(weight, squared_norms(weight), a, b, [(slice(0, 6), magnitude)])
    norm = torch.linalg.vector_norm(weight + b @ a, dim=1)
    torch.testing.assert_close(gains.norm, norm, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(
        gains.gain, torch.cat([magnitude / norm[:6], torch.ones(3)]), rtol=1e-4, atol=0
    )
    assert gains.is_invertible
