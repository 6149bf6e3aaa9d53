"""From what a request asks for to what it runs with: aliases, revisions, and how the answer is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.mix import MixTerm
from manylora.adapters.registry.records import NameRecord
from manylora.server.metrics.families import BASE, MIX
from manylora.server.residency.revision_loader import SHOWN_DIGITS


def digest_of(term: MixTerm, record: NameRecord) -> str:
    """The revision that ``term`` means, given the record of its name, which serves.

    Raises:
        AdapterNotFound: the name has no such revision.
    """
    assert record.digest is not None
    if term.revision is None or record.digest.startswith(term.revision):
        return record.digest
    return find_revision(record, term.revision)


def find_revision(record: NameRecord, prefix: str) -> str:
    """The one digest in a name's history that begins with ``prefix``.

    Raises:
        AdapterNotFound: there is none, or more than one.
    """
    found = [digest for digest in record.history if digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    have = ", ".join(digest[:SHOWN_DIGITS] for digest in record.history)
    problem = "several revisions that begin with" if found else "no revision"
    raise AdapterNotFound(f"adapter {record.name!r} has {problem} {prefix}; its revisions are {have}")


def asks_merged(terms: Sequence[MixTerm]) -> bool:
    """Whether the merged copy of a mix is asked for.

    Raises:
        MixError: of some members, but not of all: a copy is made of a whole mix.
    """
    plain = [term.name for term in terms if not term.merged]
    if plain and len(plain) < len(terms):
        raise MixError(
            f"a merged copy is of a whole mix: write '@merged' behind {plain[0]!r} as well, or nowhere"
        )
    return bool(terms) and not plain


def describe(terms: Sequence[MixTerm], digests: Mapping[MixTerm, str], base: str, *, merged: bool) -> str:
    """The mix as a model string that names the revisions it runs, and whether its merged copy does."""
    if not terms:
        return base
    parts = (
        f"{term.name}@{digests[term][:SHOWN_DIGITS]}{'.merged' if merged else ''}"
        + ("" if term.weight == 1.0 else f"*{term.weight:g}")
        for term in terms
    )
    return "+".join(parts)


def label_of(terms: Sequence[MixTerm]) -> str:
    """What the metrics call it."""
    names = {term.name for term in terms}
    return BASE if not names else names.pop() if len(names) == 1 else MIX
