"""What is logged is that of the whole optimizer step, however it is cut: batches, jobs, a ragged end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.training.jobs.train_jobs import train_jobs
from manylora.adapters.training.session.metrics_log import read_metrics
from tests.support.training_data import chat
from tests.support.training_runs import PAIRS, config, losses, run

pytestmark = pytest.mark.slow

MEASURES = (
    "loss",
    "token_accuracy",
    "tokens",
    "grad_norm",
    "learning_rate",
    "eval_loss",
    "eval_mean_token_accuracy",
)
CUTS = [(8, 1), (4, 2), (2, 4), (1, 8)]


def uneven(seed: int, count: int) -> list[Any]:
    """Rows whose answers have very different lengths."""
    source = random.Random(seed)
    return [chat(f"say {n}", str(n) * source.choice([1, 2, 30])) for n in range(count)]


def measured(
    base: Path, root: Path, rows: Any, batch: int, steps: int, **changes: Any
) -> list[dict[str, float]]:
    """The measures of each line of a run; rows are shuffled by their order alone, whatever the batch size."""
    settings = config(
        base, root, rows, name=f"{batch}x{steps}", batch_size=batch, gradient_accumulation_steps=steps,
        max_steps=None, num_train_epochs=2, eval_split=0.2, eval_steps=3, **changes,
    )  # fmt: skip
    return [{k: v for k, v in line.items() if _is_measure(k)} for line in run(settings).metrics]


def _is_measure(key: str) -> bool:
    return key in MEASURES or key.startswith(("rewards/", "logps/", "logits/"))


@pytest.mark.sweep
@pytest.mark.parametrize(("seed", "count", "logging_steps"), [(0, 20, 1), (1, 27, 3)])
def test_a_step_logs_the_same_however_it_is_cut(
    seed: int, count: int, logging_steps: int, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = uneven(seed, count)  # of which four fifths are trained on: the last step of an epoch is ragged
    whole, *cut = [
        measured(tiny_llama, tmp_path, rows, *sizes, logging_steps=logging_steps) for sizes in CUTS
    ]
    assert len({line["token_accuracy"] for line in whole if "token_accuracy" in line}) > 1
    for other in cut:
        assert len(other) == len(whole)
        for one, two in zip(whole, other, strict=True):
            assert two == pytest.approx(one, rel=2e-3, abs=1e-5)


@pytest.mark.sweep
def test_preferences_too(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [pair | {"chosen": pair["chosen"] * (1 + n % 4)} for n, pair in enumerate(PAIRS[:17])]
    whole, cut = (
        measured(tiny_llama, tmp_path, rows, *sizes, task="dpo", learning_rate=1e-3)
        for sizes in ((6, 1), (2, 3))
    )
    assert any("rewards/margins" in line for line in whole)
    for one, other in zip(whole, cut, strict=True):
        assert other == pytest.approx(one, rel=5e-3, abs=1e-3)


@pytest.mark.sweep
def test_jobs_log_what_runs_of_their_own_do(tiny_llama: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 7, "logging_steps": 2, "eval_steps": 3, "eval_split": 0.2}
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    settings = [
        config(tiny_llama, folder, uneven(n, 22), name="alone", batch_size=3 + n, **changes)
        for n, folder in enumerate(folders)
    ]
    alone = [run(one) for one in settings]
    together = train_jobs(
        [s.model_copy(update={"output_dir": s.output_dir.with_name("job")}) for s in settings]
    )
    for single, job in zip(alone, together, strict=True):
        assert len(job.metrics) == len(single.metrics)
        assert job.kept_step == single.kept_step
        for one, other in zip(single.metrics, job.metrics, strict=True):
            expected = {k: v for k, v in one.items() if k in MEASURES}
            assert {k: v for k, v in other.items() if k in MEASURES} == pytest.approx(
                expected, rel=2e-3, abs=1e-4
            )


@pytest.mark.sweep
def test_tokens_are_counted_on_after_a_resumption(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, tmp_path, max_steps=6, save_steps=3, eval_split=0)
    whole = losses(run(settings), "tokens")
    more = settings.model_copy(update={"max_steps": 8})
    assert losses(run(more, resume=True), "tokens")[: len(whole)] == whole
    counted = [
        line["tokens"] for line in read_metrics(settings.output_dir / "metrics.jsonl") if "tokens" in line
    ]
    assert counted == sorted(counted)
    assert counted[-1] > whole[-1]
