"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from manylora.adapters.disk import sync_path
from manylora.adapters.training.config_load import to_yaml
from manylora.adapters.training.data.summary import summarize
from manylora.adapters.training.gate.baseline import Sample
from manylora.adapters.training.gate.publish_gate import compared
from manylora.adapters.training.report.card import Outcome, versions
from manylora.adapters.training.report.plots import curves_png
from manylora.adapters.training.session.metrics_log import early_stop
from manylora.adapters.training.session.session import Session

_SAMPLE = ("step", "prompt", "expected", "base", "adapter")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { border: 1px solid #ccc; padding: .3rem .7rem;
text-align: left; vertical-align: top } img { max-width: 100% }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; white-space: pre-wrap } h1 small { color: #777 }
"""


def write_report(session: Session, outcome: Outcome) -> None:
    """Write ``report.html`` and ``curves.png`` into the run's directory."""
    root = session.folder.root
    picture = curves_png(outcome.metrics)
    (root / "curves.png").write_bytes(picture)
    (root / "report.html").write_text(report_html(session, outcome, picture), encoding="utf-8")
    for name in ("curves.png", "report.html"):
        sync_path(root / name)


def report_html(session: Session, outcome: Outcome, picture: bytes) -> str:
    """The whole page; everything that comes from data or models is escaped."""
    name = escape(session.config.adapter_name)
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{name}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{name} <small>on {escape(session.base.name)}</small></h1>",
        _facts(session, outcome),
        f"<h2>Base beside {session.config.product}</h2>",
        _scores(outcome),
        "<h2>Curves</h2>",
        f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(picture).decode()}">',
        _samples("Samples", outcome.baseline.samples),
        _history(outcome.metrics),
        f"<h2>Configuration</h2><pre>{escape(to_yaml(session.config))}</pre>",
        f"<p>{escape(', '.join(f'{library} {number}' for library, number in versions().items()))}</p>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _facts(session: Session, outcome: Outcome) -> str:
    train = summarize(session.prepared.train)
    rows = {
        "trained parameters": f"{outcome.trainable:,}",
        "steps": f"{outcome.steps:,} in {outcome.seconds:.0f} s" + _why_ended(outcome),
        "weights of step": f"{outcome.kept_step:,}" + _why_kept(outcome),
        "training rows": f"{train.rows:,} ({train.sequences:,} sequences)",
        "training tokens": f"{train.tokens:,}, of them learned {train.supervised:,}",
        "cut to max_length": f"{train.cut_sequences:,} sequences, {train.cut_tokens:,} tokens lost",
        f"{session.config.product} on disk": f"its {compared(session.config)} differ from the trained ones "
        f"by {outcome.gate.difference:.3%}; the training changed the base's by {outcome.gate.effect:.1%}",
    }
    return _table([], [(escape(key), escape(value)) for key, value in rows.items()])


def _why_ended(outcome: Outcome) -> str:
    early = early_stop(outcome.metrics)
    return "" if early is None else f"; stopped early: {early}"


def _why_kept(outcome: Outcome) -> str:
    return ", which had the lowest held-out loss" if outcome.kept_step < outcome.steps else ""


def _scores(outcome: Outcome) -> str:
    base, adapter = outcome.baseline.base, outcome.baseline.adapter
    if not adapter:
        return "<p>No rows were held out, so nothing was measured.</p>"
    rows = [(escape(k), f"{base[k]:.3f}" if k in base else "", f"{v:.3f}") for k, v in adapter.items()]
    warnings = "".join(f"<p><strong>Warning:</strong> {escape(text)}.</p>" for text in outcome.warnings)
    return warnings + _table(["on held-out rows", "base", "trained"], rows)


def _samples(title: str, samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = [
        tuple(
            f"<pre>{escape(text)}</pre>"
            for text in (s.prompt.text, s.prompt.expected or "", s.base, s.adapter)
        )
        for s in samples
    ]
    return f"<h2>{escape(title)}</h2>" + _table(["prompt", "expected", "base", "trained"], rows)


def _history(metrics: Sequence[dict[str, Any]]) -> str:
    """The samples taken while it trained."""
    rows = [
        tuple(f"<pre>{escape(str(line.get(key) or ''))}</pre>" for key in _SAMPLE)
        for line in metrics
        if line["kind"] == "sample" and not line.get("published")
    ]
    if not rows:
        return ""
    return "<h2>While it trained</h2>" + _table([*_SAMPLE[:-1], "trained"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; cells are HTML already."""
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"
