"""How a mix that runs is called: in answers, and in the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from manylora.adapters.mix import MixTerm
from manylora.server.metrics.labels import BASE, MIX
from manylora.server.names.view import View, called
from manylora.server.residency.revision_loader import SHOWN_DIGITS


def describe(
    terms: Sequence[MixTerm],
    digests: Mapping[MixTerm, str],
    base: str,
    *,
    merged: bool,
    view: View | None = None,
) -> str:
    """The mix as a model string that names the revisions it runs, and whether its merged copy does."""
    if not terms:
        return base
    parts = (
        f"{called(term.name, view)}@{digests[term][:SHOWN_DIGITS]}{'.merged' if merged else ''}"
        + ("" if term.weight == 1.0 else f"*{term.weight:g}")
        for term in terms
    )
    return "+".join(parts)


def label_of(terms: Sequence[MixTerm]) -> str:
    """What the metrics call it."""
    names = {term.name for term in terms}
    return BASE if not names else names.pop() if len(names) == 1 else MIX
