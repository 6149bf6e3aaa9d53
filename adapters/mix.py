"""The mix: what one request runs with, as (thing, weight) pairs, and its textual grammar.

    expression := term ("+" term)*
    term       := name ["@" (revision | revision ".merged" | "merged")] ["*" weight]
    weight     := ["-"] (digits ["." [digits]] | "." digits) [("e" | "E") ["-"] digits]

``support``, ``support@3f9a1c2e``, ``support*0.5`` and ``support*0.7+legal*-0.3`` are all mixes; the
base model is the empty one. "+" always separates terms, so neither a weight nor its exponent has a
plus sign: ``a*1e+0`` is refused, ``a*1e0`` and ``a*1e-3`` are weights.

The algebra is exact: the model a mix stands for has the weights ``W + Σ wₖ·sₖ·Bₖ·Aₖ``, so equal
members add up, order does not matter and weight 0 is absence.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from manylora.adapters.errors import AdapterNameError, MixError

MAX_ENTRIES = 8
MAX_WEIGHT = 8.0

_OPERATORS = re.compile(r"[+*@]")
MAX_NAME: Final = 128  # characters
# What follows an adapter's name in the paths of its routes; so no name may end in "/" and one of these.
ROUTE_WORDS: Final = ("pin", "unpin", "prefetch", "evict", "rollback", "merge", "export", "compose")

_ASCII_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]|/(?=[A-Za-z0-9]))*")
_FIRST = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})  # letters and digits, as Unicode sorts characters
_MARKS = frozenset({"Mn", "Mc"})  # what is written on or beside a letter
# Letters and marks that are shown as nothing, so that two names would look the same.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_MERGED = "merged"
_REVISION = re.compile(rf"([0-9a-f]{{4,64}})(\.{_MERGED})?|{_MERGED}")
_WEIGHT = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]-?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class MixTerm:
    """One term as the client wrote it: names not yet resolved to revisions."""

    name: str
    revision: str | None = None  # digest prefix
    weight: float = 1.0
    merged: bool = False  # to be answered by the mix's merged copy


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One resolved term: a revision by its digest, and its weight."""

    digest: str
    weight: float


def is_name(text: str) -> bool:
    """Whether ``text`` is an adapter name in its one spelling (Unicode's form NFC).

    It has one or several parts, with "/" between them. Each begins with a letter or digit of any script, and
    goes on with these, their marks, ".", "_", ":" and "-". So none is "..", empty, or shown as nothing.
    """
    if not 0 < len(text) <= MAX_NAME or text.rpartition("/")[2] in (ROUTE_WORDS if "/" in text else ()):
        return False
    if text.isascii():
        return bool(_ASCII_NAME.fullmatch(text))
    if _UNSEEN.search(text) or not unicodedata.is_normalized("NFC", text):
        return False
    return all(_is_part(part) for part in text.split("/"))


def _is_part(part: str) -> bool:
    kinds = [unicodedata.category(character) for character in part]
    return (
        bool(kinds)
        and kinds[0] in _FIRST
        and all(
            kind in _FIRST or kind in _MARKS or character in "._:-"
            for kind, character in zip(kinds, part, strict=True)
        )
    )


def normal_name(text: str) -> str:
    """The spelling under which ``text`` is a name, if it is one: letters that look the same are the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def check_name(name: str) -> str:
    """Return the one spelling of ``name`` if it is a valid adapter name.

    Raises:
        AdapterNameError: saying what a name looks like.
    """
    normal = normal_name(name)
    if not is_name(normal):
        raise AdapterNameError(
            f"{name[:100]!a} is not an adapter name: use 1 to {MAX_NAME} letters, digits, '.', '_', ':' "
            "or '-', starting with a letter or digit; '/' may stand between parts that do so; the last one "
            f"is not {', '.join(ROUTE_WORDS[:-1])} or {ROUTE_WORDS[-1]}"
        )
    return normal


def check_weight(weight: float, where: str) -> float:
    """Return ``weight`` if it is finite and within ±8, else raise :class:`MixError` naming ``where``."""
    if not abs(weight) <= MAX_WEIGHT:  # written so that NaN fails as well
        raise MixError(f"weight of {where} must be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    return weight


def parse_mix(expression: str) -> tuple[MixTerm, ...]:
    """Parse a model string into its terms.

    Raises:
        MixError: malformed expression, naming the term.
        AdapterNameError: a name that breaks the grammar.
    """
    if _OPERATORS.search(expression) and expression.split() != [expression]:
        raise MixError(f"{expression[:200]!r}: a mix is written without spaces, such as a*0.7+b*0.3")
    parts = expression.split("+", MAX_ENTRIES)  # a hostile megabyte of "+" makes nine parts, not a million
    if len(parts) > MAX_ENTRIES:
        raise MixError(f"a mix has at most {MAX_ENTRIES} entries")
    for number, part in enumerate(parts, 1):
        if not part and len(parts) > 1:
            raise MixError(
                f"{expression[:200]!r}: entry {number} of {len(parts)} is empty; '+' stands between two "
                "entries, as in a*0.7+b*0.3"
            )
    return tuple(_parse_term(part) for part in parts)


def parse_target(target: str) -> tuple[MixTerm, ...]:
    """The terms of what an alias stands for: a model string, or "" for the base model, whatever its name is.

    Raises:
        MixError, AdapterNameError: as :func:`parse_mix`.
    """
    return parse_mix(target) if target else ()


def _parse_term(text: str) -> MixTerm:
    head, star, weight_text = text.partition("*")
    name, at, revision = head.partition("@")
    found = _REVISION.fullmatch(revision)
    if not name and text:
        raise MixError(f"{text[:200]!r}: before {text[0]!r} comes the name of an adapter")
    if at and found is None:
        raise MixError(f"{text[:200]!r}: after '@' comes a revision (4 to 64 hex digits) or 'merged'")
    if star and not _WEIGHT.fullmatch(weight_text):
        raise MixError(f"{text[:200]!r}: after '*' comes a weight such as 0.5, without a plus sign")
    weight = check_weight(float(weight_text), repr(name[:200])) if star else 1.0
    return MixTerm(check_name(name), found[1] if found else None, weight, revision.endswith(_MERGED))


def format_mix(terms: Iterable[MixTerm]) -> str:
    """The expression that :func:`parse_mix` reads back as ``terms``; "" for the base."""
    return "+".join(_format_term(term) for term in terms)


def _format_term(term: MixTerm) -> str:
    parts = [term.revision, _MERGED if term.merged else None]
    revision = ".".join(part for part in parts if part is not None)
    revision = f"@{revision}" if revision else ""
    weight = "" if term.weight == 1.0 else f"*{float(term.weight)!r}"
    return f"{term.name}{revision}{weight}"


def normalize(entries: Iterable[MixEntry]) -> tuple[MixEntry, ...]:
    """Canonical form of a resolved mix: equal digests added up, zero weights dropped, sorted by digest."""
    weights: dict[str, list[float]] = {}
    for entry in entries:
        weights.setdefault(entry.digest, []).append(entry.weight)
    # fsum rounds once, so the total does not depend on the order in which equal members were written.
    total = {digest: math.fsum(parts) for digest, parts in weights.items()}
    return tuple(MixEntry(digest, weight) for digest, weight in sorted(total.items()) if weight != 0.0)


def mix_digest(entries: Iterable[MixEntry]) -> bytes:
    """Digest of the canonical form; equal exactly for mixes that compute the same model. b"" for the base."""
    canonical = normalize(entries)
    if not canonical:
        return b""
    text = "+".join(f"{entry.digest}*{entry.weight!r}" for entry in canonical)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
