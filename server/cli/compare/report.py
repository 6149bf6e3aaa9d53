"""A comparison as one HTML file: everything is in it, nothing is fetched.

Every text from outside (prompts, answers, names) goes through :func:`as_html`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from manylora.server.cli.compare.divergence_plot import divergence_plot
from manylora.server.cli.compare.numbers import METRICS, first_divergent, metric, nats, rate, seconds
from manylora.server.cli.compare.report_style import STYLE
from manylora.server.cli.compare.word_differences import differing
from manylora.server.cli.plain_text import as_html

Result = Mapping[str, Any]

_CLASS = {"equal up to rounding": "equal", "small differences": "small", "different": "different"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_EXPLAINED = """
<p>The targets were made to read the same reference token by token. Before each of its tokens every target
gives a probability to every token of the vocabulary: how far these are from the baseline's is counted.</p>
<ul><li><b>KL divergence</b> (nats): what the target's probabilities cost somebody who trusts them while the
baseline is true. 0 if they are the same. A divergence of <i>d</i> moves no probability by more than
&radic;(<i>d</i>/2).</li>
<li><b>JS divergence</b> (nats): the symmetric relative of KL, from 0 to ln 2 = 0.693.</li>
<li><b>same top token</b>: the share of positions where both find the same token likeliest, which greedy
decoding would take.</li>
<li><b>largest logit difference</b>: over all positions and tokens, before the softmax.</li>
<li><b>perplexity</b> of the reference: below the baseline's, the target finds it more natural.</li></ul>
"""


def html_report(result: Result, prompts: Sequence[str], about: str) -> str:
    """A comparison as one HTML file.

    Args:
        result: of ``POST /v1/compare``.
        prompts: what was asked, for people.
        about: one line on where and when.
    """
    cases = "".join(
        _case(result, case, prompt, index)
        for index, (case, prompt) in enumerate(zip(result["cases"], prompts, strict=True))
    )
    level = result["verdict"]["level"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{as_html(_POLICY)}">'
        f"<title>manylora comparison</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Comparison with {as_html(_name(result, result['baseline']))}</h1>"
        f'<p class="soft">{as_html(about)}</p>'
        f'<p><span class="badge {_CLASS[level]}">{as_html(level)}</span></p>'
        f"{_numbers(result)}{cases}{_verdict(result)}</main></body></html>\n"
    )


def _name(result: Result, target: int) -> str:
    name: str = result["targets"][target]["target"]
    return name


def _numbers(result: Result) -> str:
    head = "".join(f"<th>{as_html(heading)}</th>" for heading, _ in METRICS)
    rows = []
    for entry in result["summary"]:
        target = entry["target"]
        baseline = target == result["baseline"]
        cells = "".join(
            f"<td>{'-' if baseline and key != 'perplexity' else as_html(metric(entry, key))}</td>"
            for _, key in METRICS
        )
        level = "baseline" if baseline else entry["level"]
        rows.append(
            f"<tr><td>{as_html(_name(result, target))}<br>"
            f'<span class="soft">{as_html(result["targets"][target]["model"])}</span></td>{cells}'
            f'<td class="text {_CLASS.get(level, "soft")}">{as_html(level)}</td></tr>'
        )
    return (
        f'<div class="wide"><table><thead><tr><th>target</th>{head}<th class="text">verdict</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _case(result: Result, case: Result, prompt: str, index: int) -> str:
    lines = [(_name(result, pair["target"]), pair["kl"]) for pair in case["pairs"]]
    limits = [(t["level"], t["max_kl"]) for t in result["verdict"]["thresholds"] if t["max_kl"] is not None]
    legend = "".join(f'<span><i class="s{i}"></i>{as_html(name)}</span>' for i, (name, _) in enumerate(lines))
    return (
        f'<section><h2>Prompt {index + 1}</h2><pre class="prompt">{as_html(prompt)}</pre>'
        f"{_answers(result, case)}{_strips(result, case)}"
        f'<h3>Divergence by position</h3><p class="soft legend">{legend}</p>'
        f'<div class="wide">{divergence_plot(lines, limits)}</div></section>'
    )


def _answers(result: Result, case: Result) -> str:
    if not case["answers"]:
        return ""
    baseline = case["answers"][result["baseline"]]["text"]
    return f'<div class="answers">{"".join(_answer(result, a, baseline) for a in case["answers"])}</div>'


def _answer(result: Result, answer: Result, baseline: str) -> str:
    text = "".join(
        f"<mark>{as_html(piece)}</mark>" if differs else as_html(piece)
        for piece, differs in differing(baseline, answer["text"])
    )
    pace = (
        f"{answer['completion_tokens']} tokens ({answer['finish_reason']}), first after "
        f"{seconds(answer['ttft_seconds'])}, all after {seconds(answer['total_seconds'])}, "
        f"{rate(answer['tokens_per_second'])} tokens/s"
    )
    name = as_html(_name(result, answer["target"]))
    return f'<div class="answer"><h3>{name}</h3><pre>{text}</pre><p class="soft">{as_html(pace)}</p></div>'


def _strips(result: Result, case: Result) -> str:
    source = case["reference"]["target"]
    said = "the given text" if source is None else f"the answer of {_name(result, source)}"
    scores = {entry["target"]: entry for entry in case["scores"]}
    strips = "".join(
        f"<h3>{as_html(_name(result, pair['target']))}</h3>"
        f'<p class="strip">{_strip(case, pair, scores[result["baseline"]], scores[pair["target"]])}</p>'
        f'<p class="soft">{as_html(first_divergent(pair))}'
        f"{'; the same model, computed once' if pair['same_model'] else ''}</p>"
        for pair in case["pairs"]
    )
    scale = "".join(
        f'<span><i style="background:rgb(var(--heat)/{_heat(10.0**power):.2f})"></i>{10.0**power:g}</span>'
        for power in range(-5, 2)
    )
    return (
        f"<h3>Along {as_html(said)}</h3>"
        f'<p class="soft legend">KL in nats: {scale}<span>underlined: another top token</span></p>{strips}'
    )


def _strip(case: Result, pair: Result, baseline: Result, other: Result) -> str:
    """The reference, every token coloured by the divergence there."""
    parts = []
    for index, (token, kl, agrees) in enumerate(
        zip(case["reference"]["tokens"], pair["kl"], pair["top1_agrees"], strict=True)
    ):
        hint = (
            f"token {index}: KL {nats(kl)}, JS {nats(pair['js'][index])}; log-probability "
            f"{baseline['logprobs'][index]:.3f} / {other['logprobs'][index]:.3f}; likeliest "
            f"{baseline['top_tokens'][index]!r} / {other['top_tokens'][index]!r}"
        )
        shown = as_html(token["text"]).replace("\n", "⏎\n")
        heat, style = _heat(kl), "" if agrees else ' class="other"'
        parts.append(
            f'<span{style} style="background:rgb(var(--heat)/{heat:.2f})" '
            f'title="{as_html(hint)}">{shown}</span>'
        )
    return "".join(parts)


def _heat(kl: float) -> float:
    """Opacity of the colour: from 1e-6 on, full at 10 nats."""
    return 0.0 if kl <= 1e-6 else min(1.0, (math.log10(kl) + 6) / 7) ** 1.5


def _verdict(result: Result) -> str:
    verdict = result["verdict"]
    rows = "".join(
        f'<tr><td class="{_CLASS[t["level"]]}">{as_html(t["level"])}</td>'
        f"<td>{'' if t['mean_kl'] is None else nats(t['mean_kl'])}</td>"
        f"<td>{'' if t['max_kl'] is None else nats(t['max_kl'])}</td>"
        f'<td class="text">{as_html(t["meaning"])}</td></tr>'
        for t in verdict["thresholds"]
    )
    return (
        f'<section><h2>Verdict</h2><p class="{_CLASS[verdict["level"]]}">'
        f"<b>{as_html(verdict['sentence'])}</b></p>"
        f'<div class="wide"><table><thead><tr><th>verdict</th><th>mean KL up to</th><th>max KL up to</th>'
        f'<th class="text">what it means</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{_EXPLAINED}</section>"
    )
