"""The table of rules in the docs is the one in the code."""

from __future__ import annotations

from manylora.adapters.format.foreign.gguf.architectures import ARCHITECTURES
from manylora.adapters.format.foreign.names import Rule
from tests.support.paths import ROOT


def test_every_rule_is_documented() -> None:
    text = (ROOT / "docs" / "adapters.md").read_text()
    section = text.partition("| rule | reads |")[2].partition("\n\n")[0]
    documented = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()[2:]]
    assert sorted(documented) == sorted(map(str, Rule))


def test_the_library_knows_every_architecture() -> None:
    import gguf

    assert set(ARCHITECTURES.values()) <= set(gguf.MODEL_ARCH_NAMES.values())
