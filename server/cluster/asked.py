"""What a request asks for, as far as choosing a replica needs it: adapters, and about how many tokens.

Nothing here decides what a request may do, or how it is answered: what can't be read asks for no adapter, and
whichever replica gets it says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import orjson

from manylora.adapters.errors import AdapterError
from manylora.adapters.mix import MAX_ENTRIES, ROUTE_WORDS, MixTerm, parse_mix

_BYTES_PER_TOKEN = 4.0
_USUAL_ANSWER = 256  # tokens of an answer whose length nobody bounds
_MOST_TOKENS = 2**20
_ADAPTER_PATHS: Final = ("/v1/adapters/", "/v1/models/", "/v1/aliases/")
_LENGTHS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_SENT_TO_WEIGHTS: Final = ("/merge", "/export")  # routes of a mix's own weights, in one server's memory


@dataclass(frozen=True, slots=True)
class Asked:
    """What a router knows of a request."""

    members: tuple[str, ...] = ()  # adapters, none twice; a revision as name@digits
    tokens: float = 0.0  # of prompt and answer, by their lengths
    copy: str | None = None  # the merged copy that alone can answer, as :func:`copy_key` calls it


def read_asked(path: str, body: bytes, base: str) -> Asked:
    """What a request asks for, given its path as it was sent, its body and the base model's name."""
    if path.startswith(_ADAPTER_PATHS):
        return Asked(*_of_terms(_terms(_name_in(path), base)), copy=_copy_in(path))
    values = _object(body)
    terms = list(_all_terms(values, base))
    members, _ = _of_terms(terms)
    merged = [term for term in terms if term.merged]
    copy = copy_key(terms) if merged and len(merged) == len(terms) else None
    return Asked(members, _tokens(values, body), copy)


def copy_key(terms: Iterable[MixTerm]) -> str:
    """A merged copy's name among replicas: its members and weights, whatever revisions they are."""
    return "merged:" + "+".join(sorted(f"{term.name}*{float(term.weight)!r}" for term in terms))


def member_key(term: MixTerm) -> str:
    """An adapter's name among replicas, or a revision's that the client chose."""
    return term.name if term.revision is None else f"{term.name}@{term.revision}"


def _of_terms(terms: Sequence[MixTerm]) -> tuple[tuple[str, ...], float]:
    return tuple(dict.fromkeys(map(member_key, terms))), 0.0


def _object(body: bytes) -> dict[str, Any]:
    if body.lstrip()[:1] != b"{":
        return {}
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN, which a server refuses in its own words, or no JSON at all
        return {}
    return values if isinstance(values, dict) else {}


def _all_terms(values: dict[str, Any], base: str) -> Iterator[MixTerm]:
    """Those of the model, of the list of adapters beside it, of a comparison, and of what is published."""
    targets = values.get("targets")
    listed = values.get("adapters")
    models = [
        values.get("model"),
        values.get("lora_name"),
        *(targets[:MAX_ENTRIES] if isinstance(targets, list) else ()),
    ]
    if isinstance(listed, list):
        models += [entry.get("name") for entry in listed[:MAX_ENTRIES] if isinstance(entry, dict)]
    for model in models:
        if isinstance(model, str):
            yield from _terms(model, base)


def _terms(model: str, base: str) -> tuple[MixTerm, ...]:
    if model == base:
        return ()
    try:
        return parse_mix(model)
    except AdapterError:
        return ()


def _name_in(path: str) -> str:
    """The name, or the mix, in the path of a route, without the word that ends some."""
    rest = next(path.removeprefix(prefix) for prefix in _ADAPTER_PATHS if path.startswith(prefix))
    name, slash, word = rest.rpartition("/")
    return unquote(name if slash and word in ROUTE_WORDS else rest)


def _copy_in(path: str) -> str | None:
    """The copy whose own route this is: what is asked of a copy only the server that has it can do."""
    if not path.endswith(_SENT_TO_WEIGHTS):
        return None
    try:
        return copy_key(parse_mix(_name_in(path)))
    except AdapterError:
        return None


def _tokens(values: dict[str, Any], body: bytes) -> float:
    length = next(
        (found for key in _LENGTHS if (found := _count(values.get(key))) is not None), _USUAL_ANSWER
    )
    choices = _count(values.get("n")) or 1
    return min(len(body) / _BYTES_PER_TOKEN + length * choices, float(_MOST_TOKENS))


def _count(value: Any) -> int | None:
    return min(value, _MOST_TOKENS) if isinstance(value, int) and value >= 0 else None
