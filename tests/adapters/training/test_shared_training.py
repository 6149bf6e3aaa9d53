"""Runs in threads on one base, which come and go, are what each would be alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import Interrupted
from manylora.adapters.training.jobs.joint_steps import JointSteps
from manylora.adapters.training.jobs.shared_base import can_share
from manylora.adapters.training.jobs.shared_training import SharedTraining
from manylora.adapters.training.jobs.turns import Turns
from manylora.adapters.training.run.train import TrainingResult, Watch, train
from tests.support.joint_passes import joint_passes
from tests.support.training_data import chat
from tests.support.training_runs import PAIRS, config, losses, run

OTHER = [chat(f"what about {n}?", f"no, not {n}") for n in range(18)]
CLOSE = 1e-3  # of losses, as a share


class Company:
    """Runs that share their training."""

    def __init__(self) -> None:
        self.training = SharedTraining()

    def run(self, settings: TrainConfig, watch: Watch | None = None, **options: Any) -> TrainingResult:
        watch = Watch() if watch is None else watch
        shared = Watch(
            stop=watch.stop, told=watch.told, loader=self.training.base.loader, begun=self.training.begun
        )
        with self.training.taking_part():
            result = train(settings, watch=shared, **options)
        assert result is not None
        return result


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return joint_passes(monkeypatch)


def varied(base: Path, root: Path) -> list[TrainConfig]:
    """Uneven ranks, targets, batch sizes, schedules, lengths, numbers of steps; evaluations; DoRA."""
    for name in "xyz":
        (root / name).mkdir(parents=True, exist_ok=True)
    return [
        config(base, root / "x", max_steps=6),
        config(
            base, root / "y", OTHER, max_steps=None, num_train_epochs=2.0, batch_size=8, lora_r=2,
            target_modules="attention", use_rslora=True, lr_scheduler="linear", weight_decay=0.1, seed=3,
            rank_pattern={"q_proj": 6}, loraplus_ratio=2.0,
        ),
        config(base, root / "z", max_steps=9, seed=5, gradient_accumulation_steps=2, use_dora=True),
    ]  # fmt: skip


def close(one: TrainingResult, other: TrainingResult) -> None:
    for key in ("loss", "eval_loss", "grad_norm"):
        assert losses(one, key) == pytest.approx(losses(other, key), rel=CLOSE), key
    for key in ("tokens", "learning_rate", "epoch"):
        assert losses(one, key) == losses(other, key), key
    assert one.kept_step == other.kept_step
    first, second = (load_file(each.adapter / "adapter_model.safetensors") for each in (one, other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert float((value - second[key]).norm()) <= 2e-3 * float(value.norm()) + 1e-6, key


def test_turns_let_one_run_at_a_time_with_its_own_random_numbers() -> None:
    met: list[list[int]] = []

    def work(brought: Any) -> list[int]:
        met.append(sorted(brought))
        return [2 * each for each in brought]

    turns, running, first, ended = Turns(work), [0], threading.Event(), threading.Event()

    def draw(number: int, rounds: Iterable[object]) -> list[float]:
        found: list[float] = []
        with turns.taking_part():
            torch.manual_seed(number)
            for _ in rounds:
                running[0] += 1
                assert running[0] == 1
                found.append(float(torch.rand(1)))
                first.set()
                running[0] -= 1
                assert turns.meet(number) == 2 * number
        return found

    def draw_a_hundred() -> list[float]:
        first.wait()
        try:
            return draw(2, range(100))
        finally:
            ended.set()

    with ThreadPoolExecutor() as pool:
        one = pool.submit(draw, 1, iter(ended.is_set, True))  # it goes on until the other has ended
        two = pool.submit(draw_a_hundred)
        found = {1: one.result(), 2: two.result()}
    for number, values in found.items():
        torch.manual_seed(number)
        assert values == [float(torch.rand(1)) for _ in values]
    assert met.count([1, 2]) == 100


def test_work_that_fails_fails_in_every_thread() -> None:
    def work(_: Any) -> list[Any]:
        raise ValueError("no")

    turns, here = Turns(work), threading.Barrier(2)

    def go() -> str:
        here.wait()
        with turns.taking_part():
            with pytest.raises(ValueError, match="no"):
                turns.meet(None)
            return "and goes on"

    with ThreadPoolExecutor() as pool:
        assert [each.result() for each in (pool.submit(go), pool.submit(go))] == ["and goes on"] * 2


@pytest.mark.slow
def test_each_equals_its_run_alone(tiny_llama: Path, tmp_path: Path, passes: list[int]) -> None:
    expected = [run(settings) for settings in varied(tiny_llama, tmp_path / "alone")]
    company = Company()
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(company.run, each) for each in varied(tiny_llama, tmp_path / "together")]
        found = [future.result() for future in futures]
    assert max(passes) == 3
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert not company.training.base.is_loaded


@pytest.mark.slow
@pytest.mark.sweep
def test_one_that_is_alone_is_bit_by_bit_what_it_is_without(tiny_llama: Path, tmp_path: Path) -> None:
    expected = run(config(tiny_llama, tmp_path, name="a", lora_dropout=0.1))
    found = Company().run(config(tiny_llama, tmp_path, name="b", lora_dropout=0.1))
    assert losses(found) == losses(expected)
    one, other = (load_file(each.adapter / "adapter_model.safetensors") for each in (found, expected))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.sweep
@pytest.mark.slow
def test_those_that_take_no_common_step_take_turns_bit_by_bit(tiny_llama: Path, tmp_path: Path) -> None:
    """Preferences, dropout and checkpointing, beside one that is alone in the shared pass."""
    kinds: list[dict[str, Any]] = [
        {"task": "dpo", "rows": PAIRS, "max_steps": 4},
        {"lora_dropout": 0.2, "max_steps": 5},
        {"gradient_checkpointing": True, "max_steps": 4, "seed": 4},
        {"max_steps": 6},
    ]
    made: list[list[TrainConfig]] = []
    for where in ("alone", "together"):
        made.append([])
        for number, kind in enumerate(kinds):
            root = tmp_path / where / str(number)
            root.mkdir(parents=True)
            made[-1].append(config(tiny_llama, root, **kind))
    expected, company = [run(settings) for settings in made[0]], Company()
    with ThreadPoolExecutor() as pool:
        found = [each.result() for each in [pool.submit(company.run, settings) for settings in made[1]]]
    for one, other in zip(found, expected, strict=True):
        assert losses(one) == losses(other)
        assert losses(one, "eval_loss") == losses(other, "eval_loss")


@pytest.mark.slow
@pytest.mark.sweep
def test_one_comes_late_and_one_is_stopped_and_goes_on(
    tiny_llama: Path, tmp_path: Path, passes: list[int]
) -> None:
    """It goes on beside another than it began with; the third is not disturbed."""
    first, second, third = varied(tiny_llama, tmp_path / "alone")
    expected = [run(settings) for settings in (first, second, third)]
    first, second, third = varied(tiny_llama, tmp_path / "together")
    company, at_two, watch = Company(), threading.Event(), Watch()

    def told(line: Any) -> None:
        if line["step"] == 2:
            at_two.set()
            watch.stop.ask("paused")

    stopped = Watch(stop=watch.stop, told=told)
    with ThreadPoolExecutor() as pool:
        long = pool.submit(company.run, third)
        early = pool.submit(company.run, first, stopped)
        assert at_two.wait(60)
        late = pool.submit(company.run, second)
        with pytest.raises(Interrupted, match="paused at step 3"):
            early.result()
        again = pool.submit(company.run, first, resume=True)
        found = [again.result(), late.result(), long.result()]
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert set(passes) & {2, 3}


@pytest.mark.slow
@pytest.mark.sweep
def test_what_does_not_fit_in_one_pass_takes_turns(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    expected = [run(settings) for settings in varied(tiny_llama, tmp_path / "alone")[:2]]
    monkeypatch.setattr(JointSteps, "together", full)
    company = Company()
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(company.run, each) for each in varied(tiny_llama, tmp_path / "turns")[:2]]
        found = [future.result() for future in futures]
    for one, other in zip(found, expected, strict=True):
        assert losses(one) == losses(other)


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, True),
        ({"use_dora": True}, True),
        ({"lora_dropout": 0.1}, True),
        ({"init": "pissa"}, False),
        ({"init": "olora"}, False),
        ({"quantization": "int8"}, True),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"method": "ia3"}, False),
    ],
)
def test_who_shares_a_base(tmp_path: Path, changes: dict[str, Any], shares: bool) -> None:
    assert can_share(config(Path("/base"), tmp_path, **changes)) is shares


@pytest.mark.parametrize(
    ("key", "shares"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", True),
        ("base_model.model.model.embed_tokens.weight", False),
        (None, False),
    ],
)
def test_an_adapter_that_brings_weights_of_the_base_has_one_of_its_own(
    tmp_path: Path, key: str | None, shares: bool
) -> None:
    if key is not None:
        save_file({key: torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    settings = config(Path("/base"), tmp_path).model_copy(update={"init_adapter": str(tmp_path)})
    assert can_share(settings) is shares
