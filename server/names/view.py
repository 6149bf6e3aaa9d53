"""What there is for who asks: names as they write them, and those that they may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from manylora.adapters.mix import MixTerm


class View(Protocol):
    """The names of a registry as one of those sees them who share it."""

    def meaning(self, name: str) -> str:
        """The registry's name for what they call ``name``; one of their own, if they may use none."""

    def shown(self, name: str) -> str:
        """What they call the registry's ``name``, which they may use."""

    def visible(self, name: str | None) -> bool:
        """Whether they may use, and learn of, the registry's ``name``; None: the base model."""

    def from_sources(self, name: str) -> bool:
        """Whether an unknown name of the registry may be fetched for them."""


def called(name: str, view: View | None) -> str:
    """What who asks calls the registry's ``name``."""
    return name if view is None else view.shown(name)


def meant(terms: Sequence[MixTerm], view: View | None) -> tuple[MixTerm, ...]:
    """The terms by the registry's names."""
    if view is None:
        return tuple(terms)
    return tuple(replace(term, name=view.meaning(term.name)) for term in terms)


def shown_terms(terms: Sequence[MixTerm], view: View | None) -> tuple[MixTerm, ...]:
    """Terms of the registry's names as who asks calls them."""
    if view is None:
        return tuple(terms)
    return tuple(replace(term, name=view.shown(term.name)) for term in terms)
