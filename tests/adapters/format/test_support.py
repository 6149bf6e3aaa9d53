"""The table of what is served is complete, and is the one in the documentation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from manylora.adapters.format.config.support import INITS, Option, Treatment
from manylora.adapters.format.kinds.table import KINDS, OPTIONS
from tests.support.paths import ROOT
from tests.support.support_tables import costs_table, kinds_table, support_tables

CONFIGS: dict[str, Any] = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
DOCS = ROOT / "docs" / "adapters.md"


def test_the_documentation_holds_the_generated_tables() -> None:
    for table in (kinds_table(), costs_table(), support_tables()):
        assert table in DOCS.read_text(), "run python -m tests.support.support_tables"


def test_every_kind_of_the_installed_peft_has_a_row() -> None:
    assert {kind.value for kind in PeftType} <= {kind.peft_type for kind in KINDS}


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind != "BONE"])  # which PEFT 0.21 dropped
def test_every_option_of_the_installed_peft_has_a_row(kind: str) -> None:
    fields = {field.name for field in dataclasses.fields(CONFIGS[kind])}
    assert fields <= {option.key for option in OPTIONS[kind]}


def test_what_has_options_is_served() -> None:
    assert {kind.peft_type for kind in KINDS if kind.treatment is Treatment.SERVED} == set(OPTIONS)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(k, o) for k, options in OPTIONS.items() for o in options if o.treatment is Treatment.REFUSED],
)
def test_an_option_is_off_by_default(kind: str, option: Option) -> None:
    """Otherwise every adapter that PEFT saves would be refused."""
    field = next(f for f in dataclasses.fields(CONFIGS[kind]) if f.name == option.key)
    factory = field.default_factory
    assert option.is_off(field.default if factory is dataclasses.MISSING else factory())


def test_rows_are_unique_and_every_refusal_has_a_reason() -> None:
    options = OPTIONS.values()
    for names in (
        *([o.key for o in p] for p in options),
        [k.peft_type for k in KINDS],
        [i.value for i in INITS],
    ):
        assert len(names) == len(set(names))
    for notes in (*([o.note for o in p] for p in options), [k.note for k in KINDS], [i.note for i in INITS]):
        assert all(notes)


def test_zero_is_not_off() -> None:
    qalora = next(option for option in OPTIONS["LORA"] if option.key == "use_qalora")
    assert qalora.is_off(False)
    assert not qalora.is_off(0)
