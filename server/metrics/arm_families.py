"""The metrics of aliases' arms, made from their counts when Prometheus asks.

An arm has some twenty series. An alias has at most eight arms, and one that it loses takes its series along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from manylora.server.metrics.labels import OUTCOMES

ArmCounts = Mapping[
    tuple[str, str], Mapping[str, float]
]  # by (alias, target); see manylora.server.experiments.arm_counts

LABELS = ("alias", "arm")
_MEASURES = {
    "time_to_first_token_seconds": "Request to first token, loading a cold adapter included.",
    "inter_token_seconds": "Time between two tokens; the mean of each answer.",
    "request_seconds": "Request to last token, of answers that were completed.",
    "prompt_tokens": "Tokens of prompts.",
    "completion_tokens": "Tokens of answers that were completed.",
}


def arm_families(counted: ArmCounts) -> Iterable[Metric]:
    """What ``counted`` says, by arm."""
    requests = CounterMetricFamily("manylora_arm_requests", "Requests for an alias.", labels=LABELS)
    answers = CounterMetricFamily("manylora_arm_answers", "Answers ended.", labels=(*LABELS, "outcome"))
    scores = GaugeMetricFamily("manylora_arm_scores", "Answers that users have scored.", labels=LABELS)
    points = GaugeMetricFamily("manylora_arm_score_points", "Sum of their scores.", labels=LABELS)
    for arm, counts in counted.items():
        requests.add_metric(arm, counts.get("requests", 0))
        for outcome in OUTCOMES:
            answers.add_metric((*arm, outcome), counts.get(outcome, 0))
        scores.add_metric(arm, counts.get("score:count", 0))
        points.add_metric(arm, counts.get("score:total", 0))
    yield from (requests, answers, scores, points)
    for name, text in _MEASURES.items():
        family = SummaryMetricFamily(f"manylora_arm_{name}", text, labels=LABELS)
        for arm, counts in counted.items():
            family.add_metric(arm, int(counts.get(f"{name}:count", 0)), counts.get(f"{name}:total", 0))
        yield family
