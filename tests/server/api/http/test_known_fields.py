"""Every row of the table of fields over HTTP: what is taken changes no answer, the rest is 400 by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.server.api.http.middleware import IGNORED_FIELDS_HEADER as HEADER
from manylora.server.api.request.fields.field import Field, Place, Sort
from manylora.server.api.request.fields.table import FIELDS
from tests.support.refused_requests import CHAT, MESSAGES, TEXT, checked_error, valid_request
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of

ROUTES = {Place.CHAT: CHAT, Place.COMPLETIONS: TEXT}
ODD: list[Any] = [True, False, 0, 7, -1.5, "", "x", [], ["x"], {}, {"a": {"b": [1]}}]


def rows(place: Place, sort: Sort) -> list[Field]:
    return [row for row in FIELDS if place in row.places and row.sort is sort]


def answered(server: Running, endpoint: str, fields: dict[str, Any]) -> Any:
    """The choices of a greedy answer."""
    greedy = valid_request(endpoint, {"temperature": 0, "max_tokens": 6})
    with server.http() as http:
        answer = http.post(endpoint, json={**greedy, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ROUTES)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_hints_change_no_answer(server: Running, place: Place, value: Any) -> None:
    hints = {row.name: value for row in rows(place, Sort.HINT)}
    assert len(hints) > 20
    assert answered(server, ROUTES[place], hints) == answered(server, ROUTES[place], {})


@pytest.mark.parametrize("place", ROUTES)
def test_default_values_change_no_answer(server: Running, place: Place) -> None:
    expected = answered(server, ROUTES[place], {})
    defaults = rows(place, Sort.DEFAULT)
    for index in range(max(len(row.taken) for row in defaults)):
        fields = {row.name: row.taken[index % len(row.taken)] for row in defaults}
        assert answered(server, ROUTES[place], fields) == expected


@pytest.mark.slow
@pytest.mark.parametrize("place", ROUTES)
def test_other_values_are_refused_by_name(server: Running, place: Place) -> None:
    endpoint = ROUTES[place]
    with server.http() as http:
        for row in [*rows(place, Sort.DEFAULT), *rows(place, Sort.REFUSED)]:
            for value in [odd for odd in ODD if not row.asks_for_nothing(odd)]:
                answer = http.post(endpoint, json=valid_request(endpoint, {row.name: value}))
                assert answer.status_code == 400, (row.name, value)
                error = checked_error(answer.json())
                assert (error["param"], error["code"]) == (row.name, "unsupported_parameter")


def test_fields_that_a_template_ignores_are_named(server: Running) -> None:
    fields = {
        "messages": [{**MESSAGES[0], "name": "Bob"}],
        "verbosity": "low",
        "chat_template_kwargs": {"a": 1},
        "metadata": {"a": "b"},
    }
    with server.http() as http:
        whole = http.post(CHAT, json=valid_request(CHAT, fields))
        streamed = http.post(CHAT, json=valid_request(CHAT, {**fields, "stream": True}))
        tokens = http.post("/tokenize", json={"messages": fields["messages"]})
        plain = http.post(CHAT, json=valid_request(CHAT, {}))
    named = "messages[0].name, chat_template_kwargs.a, verbosity"
    assert whole.headers[HEADER] == streamed.headers[HEADER] == named
    assert tokens.headers[HEADER] == "messages[0].name"
    assert HEADER not in plain.headers


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server that takes unknown fields."""
    data = tmp_path_factory.mktemp("data")
    with serving(service_of(data, model, adapters, unknown_fields="ignore")) as running:
        yield running


UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"colour": "blue"}, "colour"),
    (CHAT, {"colour": "blue", "_shape": None, "": 1}, "colour, _shape, "),
    (CHAT, {"messages": [{**MESSAGES[0], "mood": "sad"}, *MESSAGES]}, "messages[0].mood"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "x": 1}]}]},
        "messages[0].content[0].x",
    ),
    (CHAT, {"stream_options": {"x": 1}}, "stream_options.x"),
    (CHAT, {"adapters": [{"name": "alpha", "x": 1}]}, "adapters[0].x"),
    (CHAT, {"a\r\nset-cookie: b": 1}, "a%0D%0Aset-cookie%3A%20b"),
    (CHAT, {"Größe, Farbe": 1}, "Gr%C3%B6%C3%9Fe%2C%20Farbe"),
    (CHAT, {f"x{i}": i for i in range(200)}, ", ".join(f"x{i}" for i in range(32)) + ", ..."),
    (CHAT, {"y" * 5000: 1}, "y" * 100),
    (TEXT, {"colour": "blue"}, "colour"),
    ("/tokenize", {"prompt": "Hi", "colour": "blue"}, "colour"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("endpoint", "fields", "named"), UNKNOWN, ids=lambda value: str(value)[:40])
def test_unknown_fields_are_taken_and_named(
    lenient: Running, server: Running, endpoint: str, fields: dict[str, Any], named: str
) -> None:
    with lenient.http() as http:
        taken = http.post(endpoint, json=valid_request(endpoint, fields))
    assert taken.status_code == 200, taken.text
    assert taken.headers[HEADER] == named.strip()
    with server.http() as http:
        refused = http.post(endpoint, json=valid_request(endpoint, fields))
    assert refused.status_code == 400
    assert checked_error(refused.json())["code"] == "unknown_parameter"


@pytest.mark.slow
def test_a_lenient_server_still_refuses_what_it_knows(lenient: Running) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"temperature": 9, "x": 1}, "temperature"),
        ({"functions": [{}], "x": 1}, "functions"),
        ({"messages": [{"role": "king", "content": "x", "mood": 1}]}, "messages[0].role"),
        ({f"x{i}": i for i in range(300)}, ""),
    ]
    with lenient.http() as http:
        for fields, param in cases:
            answer = http.post(CHAT, json=valid_request(CHAT, fields))
            assert answer.status_code == 400
            assert checked_error(answer.json())["param"] == (param or None)
