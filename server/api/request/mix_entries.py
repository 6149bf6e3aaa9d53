"""Mixes as lists of names and weights, as ``adapters`` of a request and ``members`` of a composition are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.mix import MixTerm, check_weight, parse_mix
from manylora.server.api.http.error_context import blame
from manylora.server.names.resolve import Resolver
from manylora.server.names.view import View


class Entry(Protocol):
    """An entry of a mix as the client wrote it."""

    @property
    def name(self) -> str:
        """An adapter, a revision of it, or an alias."""

    @property
    def weight(self) -> float: ...


def terms_of(entries: Sequence[Entry], param: str) -> tuple[MixTerm, ...]:
    """The terms that ``entries`` of the parameter ``param`` stand for.

    Raises:
        Blamed: for a MixError or AdapterNameError; names the entry and what of it is wrong.
    """
    return tuple(_term(entry, f"{param}[{index}]") for index, entry in enumerate(entries))


def _term(entry: Entry, param: str) -> MixTerm:
    with blame(f"{param}.name"):
        (term, *others) = parse_mix(entry.name)
        if others or "*" in entry.name:
            raise MixError(f"'{entry.name}': an entry names one adapter, its strength goes into 'weight'")
    with blame(f"{param}.weight"):
        return replace(term, weight=check_weight(entry.weight, f"'{term.name}'"))


def first_missing(resolver: Resolver, terms: Sequence[MixTerm], param: str, view: View | None = None) -> str:
    """The entry of ``param`` whose adapter does not exist; ``param`` itself if all do."""
    for index, term in enumerate(terms):
        try:
            resolver.digests([term] if view is None else resolver.visible_terms([term], view))
        except AdapterNotFound:
            return f"{param}[{index}].name"
        except MixError:  # an alias that is a split: there, at least
            continue
    return param
