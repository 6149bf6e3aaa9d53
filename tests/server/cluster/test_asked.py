"""What a router reads from a request: adapters, revisions, copies, and about how many tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.mix import parse_mix
from manylora.server.cluster.asked import Asked, copy_key, read_asked

CHAT = "/v1/chat/completions"


def asked(path: str = CHAT, **fields: Any) -> Asked:
    return read_asked(path, json.dumps(fields).encode(), "base")


@pytest.mark.parametrize(
    ("fields", "members"),
    [
        ({"model": "base"}, ()),
        ({"model": "support"}, ("support",)),
        ({"model": "support@3f9a1c2e"}, ("support@3f9a1c2e",)),
        ({"model": "a*0.7+b*0.3+a*0.1"}, ("a", "b")),
        ({"model": "base", "adapters": [{"name": "a", "weight": 1}, {"name": "b@3f9a"}]}, ("a", "b@3f9a")),
        ({"lora_name": "a", "lora_path": "/x"}, ("a",)),
        ({"targets": ["base", "a", "b+c"]}, ("a", "b", "c")),
        ({"model": "a*9"}, ()),
        ({"model": "a b"}, ()),
        ({"model": 7, "adapters": "x", "targets": {}}, ()),
        ({"model": "base", "adapters": [3, {"weight": 1}]}, ()),
        ({}, ()),
    ],
)
def test_members(fields: dict[str, Any], members: tuple[str, ...]) -> None:
    assert asked(**fields).members == members


@pytest.mark.parametrize(
    ("path", "members", "copy"),
    [
        ("/v1/adapters/support", ("support",), None),
        ("/v1/adapters/team/support/prefetch", ("team/support",), None),
        ("/v1/adapters/team%2Fsupport/evict", ("team/support",), None),
        ("/v1/adapters/a+b*0.5/merge", ("a", "b"), "merged:a*1.0+b*0.5"),
        ("/v1/models/support", ("support",), None),
        ("/v1/adapters/", (), None),
        ("/v1/adapters", (), None),
        ("/v1/adapters/%ff/merge", (), None),
    ],
)
def test_names_in_paths(path: str, members: tuple[str, ...], copy: str | None) -> None:
    found = read_asked(path, b"", "base")
    assert (found.members, found.copy) == (members, copy)


def test_a_merged_copy_is_known_by_members_and_weights_in_any_order() -> None:
    assert asked(model="a@merged*0.5+b@3f9a.merged").copy == copy_key(parse_mix("b+a*0.5"))
    assert asked(model="a@merged").copy == "merged:a*1.0"
    assert asked(model="a@merged+b").copy is None  # which is refused
    assert asked(model="a").copy is None


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 50, "max_tokens": 100}, 50),
        ({"max_output_tokens": 0}, 0),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": -5}, 256),
        ({"max_tokens": "many"}, 256),
        ({}, 256),
    ],
)
def test_tokens_are_those_of_the_answer_and_a_quarter_of_the_bytes(
    fields: dict[str, Any], tokens: int
) -> None:
    assert asked(**fields).tokens == tokens + len(json.dumps(fields)) / 4


def test_tokens_have_a_bound() -> None:
    assert asked(max_tokens=10**15, n=10**15).tokens == 2**20


@given(st.binary(max_size=200), st.text(max_size=60))
def test_no_bytes_and_no_path_make_it_fail(body: bytes, path: str) -> None:
    for start in ("", "/v1/adapters/", "/v1/chat/completions"):
        found = read_asked(start + path, body, "base")
        assert len(found.members) <= 8 * 17


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"model": NaN}', '{"model": "a"'])
def test_hostile_json_asks_for_nothing(text: str) -> None:
    assert read_asked(CHAT, text.encode(), "base").members == ()
