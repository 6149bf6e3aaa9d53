"""Names of fine-tuned models: read as they were written, and names of adapters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import MAX_NAME, is_name, parse_mix
from manylora.adapters.registry.fine_tuned import (
    MAX_STEP,
    FineTunedName,
    fine_tuned_name,
    parse_fine_tuned,
)

IDS = st.from_regex(r"[A-Za-z0-9]{1,12}", fullmatch=True)
ORGS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,11}", fullmatch=True)
BASES = st.text(max_size=20) | st.from_regex(r"[a-z]{1,5}[/:][a-z0-9.:-]{1,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ft:smollm2-135m:acme:support:a1b2c3d4", ("smollm2-135m", "acme", "support", "a1b2c3d4", None)),
        ("ft:tiny:acme::x", ("tiny", "acme", "", "x", None)),
        ("ft:tiny:acme:support:x:ckpt-step-88", ("tiny", "acme", "support", "x", 88)),
        ("ft:tiny:acme::x:ckpt-step-0", ("tiny", "acme", "", "x", 0)),
        ("ft:qwen:7b:acme:s:x", ("qwen:7b", "acme", "s", "x", None)),
        ("ft:org/model.v1:acme:s:x", ("org/model.v1", "acme", "s", "x", None)),
        ("ft:tiny:acme:größe:x", ("tiny", "acme", "größe", "x", None)),
    ],
)
def test_parts(text: str, parts: tuple[str, str, str, str, int | None]) -> None:
    name = parse_fine_tuned(text)
    assert name == FineTunedName(*parts)
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    ["", "ft:", "support", "ft:a:b:c", "ft:::s:x", "ft:a::s:x", "ft:a:b:c:", "FT:a:b:c:d", "ft:a:b:c:d:",
     "ft:a:b:c:d:ckpt-step-", "ft:a:b:c:d:ckpt-step-01", "ft:a:b:c:d:ckpt-step-99999999999",
     "ft:a:b:c:d:ckpt-step-9999999999", "ft:a:b:c:d:ckpt-step-1:ckpt-step-2", "ft:a:b:c:d*0.5",
     "ft:a:b:c/d:e",
     "ft:a:b:c:d-e", "ft:a:b:c:d\n", "ft:a:-b:c:d", "ft:a:b:" + "c" * 65 + ":d", "x/ft:a:b:c:d"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert parse_fine_tuned(text) is None


@given(BASES, ORGS, st.none() | st.text(max_size=20), IDS, st.none() | st.integers(0, MAX_STEP))
def test_every_name_is_an_adapters_and_is_read_back(
    base: str, org: str, suffix: str | None, model_id: str, step: int | None
) -> None:
    name = fine_tuned_name(base, org, suffix, model_id)
    name = name if step is None else name.at(step)
    assert parse_fine_tuned(str(name)) == name
    assert is_name(str(name))
    assert is_name(f"{org}/{name}")  # as a tenant's own
    assert parse_mix(f"{name}*0.5+other*0.5")[0].name == str(name)
    assert not (suffix or "").strip() or name.suffix


@given(st.text(alphabet="ft:ab/.-0 9k*@ckpt-step-1Ä", max_size=40).map(lambda text: f"ft:{text}"))
def test_what_is_read_is_written_the_same(text: str) -> None:
    name = parse_fine_tuned(text)
    assert name is None or str(name) == text


def test_two_names_are_never_one() -> None:
    parts = ["a", "a:b", "b"]
    names = [
        str(FineTunedName(base, org, suffix, model_id, step))
        for base in parts
        for org in ("a", "b")
        for suffix in ("", "a", "b")
        for model_id in ("a", "b")
        for step in (None, 0, 1)
    ]
    assert len(set(names)) == len(names)


def test_suffixes_are_bounded_and_cleaned() -> None:
    assert fine_tuned_name("tiny", "acme", "x" * 64, "i").suffix == "x" * 64
    assert (
        fine_tuned_name("tiny", "acme", "My model: v2/β\N{ZERO WIDTH SPACE}", "i").suffix == "My-model--v2-β-"
    )
    with pytest.raises(AdapterNameError, match="64"):
        fine_tuned_name("tiny", "acme", "x" * 65, "i")
    with pytest.raises(AdapterNameError, match="shorter"):
        fine_tuned_name("tiny", "acme", "x" * 64, "i" * 8, namespace="acme" * 10 + "/")
    room = MAX_NAME - len(f"acme/ft:tiny:acme::iiiiiiii:ckpt-step-{MAX_STEP}")
    assert fine_tuned_name("tiny", "acme", "x" * min(room, 64), "i" * 8, namespace="acme/")


def test_long_bases_and_tenants_are_cut_as_far_as_is_needed() -> None:
    assert fine_tuned_name("hub/Model-1B", "acme", None, "i").base == "hub/Model-1B"
    assert fine_tuned_name("hub/" + "b" * 90, "o" * 20, None, "i") == FineTunedName(
        "b" * 32, "o" * 20, "", "i"
    )
    longest = fine_tuned_name("b" * 200, "o" * 64, "sfx", "i" * 8, namespace="o" * 64 + "/")
    assert longest == FineTunedName("b" * 12, "o" * 8, "sfx", "i" * 8)
