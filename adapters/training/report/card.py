"""The model card that lies in the adapter's directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.data.summary import summarize
from manylora.adapters.training.gate.baseline import Baseline
from manylora.adapters.training.gate.publish_gate import GateResult, compared
from manylora.adapters.training.session.metrics_log import early_stop
from manylora.adapters.training.session.session import Session

LIBRARIES = ("manylora", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")
_KINDS = {"adapter": "A LoRA adapter of", "model": "A full fine-tuning of"}
_TAGS = {
    "adapter": "library_name: peft\ntags: [lora, manylora]",
    "model": "library_name: transformers\ntags: [manylora]",
}
POINTS = 12  # of each curve


@dataclass(frozen=True)
class Outcome:
    """What a run found out, for card, report and caller."""

    baseline: Baseline
    gate: GateResult
    metrics: Sequence[dict[str, Any]]  # the lines of metrics.jsonl
    steps: int
    seconds: float  # of training
    trainable: int  # parameters
    kept_step: int  # whose weights they are
    warnings: Sequence[str] = ()  # by what it is worse than the base


def versions() -> dict[str, str]:
    """The libraries that had a part in a run."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def card(session: Session, outcome: Outcome) -> str:
    """The card as Markdown, with the header that the Hub reads."""
    config, prepared = session.config, session.prepared
    train = summarize(prepared.train)
    digests = "\n".join(
        f"- `{parsed.file.path.name}`: {len(parsed.rows)} rows, {parsed.format and parsed.format.name}, "
        f"SHA-256 `{parsed.file.digest}`"
        for parsed in prepared.files
    )
    sections = [
        f"---\nbase_model: {session.base.public_name}\n{_TAGS[config.product]}\n---\n\n"
        f"# {config.adapter_name}\n\n"
        f"{_KINDS[config.product]} {session.base.public_name}, trained by `manylora train` on "
        f"{datetime.now(UTC):%Y-%m-%d} ({config.task}; {outcome.trainable:,} trained parameters, "
        f"{outcome.steps} steps, {outcome.seconds:.0f} s).",
        f"## Results\n\n{_warnings(outcome)}{results_table(outcome.baseline)}\n\n"
        f"{_kept_text(outcome)}{_gate_text(outcome.gate, compared(config))}{_pooling_text(session)}",
        f"## Data\n\n{digests}\n\n{train.sequences} sequences of {train.tokens:,} tokens were trained on, "
        f"{train.supervised:,} of them learned.",
        f"## Curves\n\n{curve_table(outcome.metrics)}",
        f"## Configuration\n\n```yaml\n{to_yaml(config)}```",
        "## Versions\n\n" + ", ".join(f"{name} {number}" for name, number in versions().items()),
    ]
    return "\n\n".join(sections) + "\n"


def _warnings(outcome: Outcome) -> str:
    return "".join(f"**Warning:** {warning}.\n\n" for warning in outcome.warnings)


def _kept_text(outcome: Outcome) -> str:
    early = early_stop(outcome.metrics)
    stopped = "" if early is None else f"It was stopped early: {early}.\n\n"
    if outcome.kept_step == outcome.steps:
        return stopped
    return (
        f"{stopped}These are the weights of step {outcome.kept_step}, which had the lowest held-out loss.\n\n"
    )


def results_table(baseline: Baseline) -> str:
    """Base beside adapter, as Markdown."""
    if not baseline.adapter:
        return "No rows were held out, so nothing was measured."
    lines = ["| on held-out rows | base | trained |", "|---|---|---|"]
    for name, value in baseline.adapter.items():
        before = f"{baseline.base[name]:.3f}" if name in baseline.base else ""
        lines.append(f"| {name} | {before} | {value:.3f} |")
    return "\n".join(lines)


def curve_table(metrics: Sequence[dict[str, Any]]) -> str:
    """A few points of both losses, as Markdown."""
    lines = ["| step | loss | eval loss |", "|---|---|---|"]
    steps: dict[int, dict[str, float]] = {}
    for line in metrics:
        for key in ("loss", "eval_loss"):
            if isinstance(line.get(key), int | float):
                steps.setdefault(int(line["step"]), {})[key] = float(line[key])
    every = max(1, -(-len(steps) // POINTS))
    for step in sorted(steps)[::-1][::every][::-1]:
        cells = [f"{steps[step][key]:.3f}" if key in steps[step] else "" for key in ("loss", "eval_loss")]
        lines.append(f"| {step} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _pooling_text(session: Session) -> str:
    if session.config.task != "embedding":
        return ""
    return f"\n\nA text's vector: {session.pooling}; `1_Pooling/config.json` and `modules.json` say so."


def _gate_text(gate: GateResult, what: str) -> str:
    text = (
        f"Read back from disk beside a pristine base, its {what} on probe rows differ from those of the "
        f"model that was trained by {gate.difference:.3%}; the training changed them by {gate.effect:.1%}."
    )
    if gate.end_base is None or gate.end_adapter is None:
        return text
    ends = f"base {gate.end_base:.2f}, trained {gate.end_adapter:.2f}"
    return f"{text} Log-probability of the end of a turn: {ends}."
