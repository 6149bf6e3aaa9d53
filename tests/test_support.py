"""The table of what is served is complete, and is the one in the documentation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import peft
import pytest
from peft.utils import PeftType

from adapters.support import INITS, KINDS, OPTIONS, Option, Treatment, support_tables

DOCS = Path(__file__).resolve().parent.parent / "docs" / "adapters.md"


def test_the_documentation_holds_the_generated_tables() -> None:
    assert support_tables() in DOCS.read_text(), (
        "run: python -c 'from adapters.support import support_tables; print(support_tables())' and put its "
        "output between the markers of docs/adapters.md"
    )


def test_every_kind_of_the_installed_peft_has_a_row() -> None:
    assert {kind.value for kind in PeftType} <= {kind.peft_type for kind in KINDS}


def test_every_option_of_the_installed_peft_has_a_row() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= {option.key for option in OPTIONS}


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.treatment is Treatment.REFUSED])
def test_an_option_is_off_by_default(option: Option) -> None:
    """Otherwise every adapter that PEFT saves would be refused."""
    assert option.is_off(getattr(peft.LoraConfig(), option.key))


def test_rows_are_unique_and_every_refusal_has_a_reason() -> None:
    for names in ([o.key for o in OPTIONS], [k.peft_type for k in KINDS], [i.value for i in INITS]):
        assert len(names) == len(set(names))
    for notes in ([o.note for o in OPTIONS], [k.note for k in KINDS], [i.note for i in INITS]):
        assert all(notes)


def test_zero_is_not_off() -> None:
    dora = next(option for option in OPTIONS if option.key == "use_dora")
    assert dora.is_off(False)
    assert not dora.is_off(0)
