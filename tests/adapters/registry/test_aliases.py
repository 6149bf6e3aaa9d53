"""Aliases share the names of adapters."""

from __future__ import annotations

import pytest

from manylora.adapters.errors import AdapterExists, AdapterNameError, AdapterNotFound, MixError
from manylora.adapters.registry.registry import Registry
from tests.support.revision_records import revision


def test_put_get_and_remove(registry: Registry) -> None:
    first = registry.aliases.put("prod", [("support@3f9a1c2e", 9), ("support", 1)])
    assert first.arms == (("support@3f9a1c2e", 9.0), ("support", 1.0))
    second = registry.aliases.put("prod", [("support*0.5+legal", 1.0)])
    assert (second.created, second.arms) == (first.created, (("support*0.5+legal", 1.0),))
    assert second.updated >= first.updated
    assert registry.aliases.get("prod") == second
    registry.aliases.put("Beta", [("x", 1.0)])
    assert [alias.name for alias in registry.aliases.all()] == ["Beta", "prod"]
    assert registry.aliases.remove("prod") == second
    for gone in (registry.aliases.get, registry.aliases.remove):
        with pytest.raises(AdapterNotFound):
            gone("prod")
        with pytest.raises(AdapterNotFound):
            gone("\0")


def test_a_name_is_an_adapter_or_an_alias(registry: Registry) -> None:
    registry.aliases.put("prod", [("support", 1.0)])
    with pytest.raises(AdapterExists, match="alias"):
        registry.names.announce("prod", "x")
    with pytest.raises(AdapterExists, match="alias"):
        registry.names.set_revision("prod", revision(), replace=True, source="x")
    registry.names.announce("support", "x")
    with pytest.raises(AdapterExists, match="adapter"):
        registry.aliases.put("support", [("legal", 1.0)])


def test_aliases_do_not_chain(registry: Registry) -> None:
    registry.aliases.put("prod", [("support", 1.0)])
    for target in ("prod", "support+prod@abcd*0.5", "canary"):
        with pytest.raises(MixError, match="alias"):
            registry.aliases.put("canary", [(target, 1.0)])
    with pytest.raises(MixError, match="'prod'"):
        registry.aliases.put("support", [("legal", 1.0)])
    assert [alias.name for alias in registry.aliases.all()] == ["prod"]


@pytest.mark.parametrize("share", [0.0, -1.0, float("nan"), float("inf")])
def test_shares(registry: Registry, share: float) -> None:
    with pytest.raises(MixError, match="share"):
        registry.aliases.put("prod", [("a", 1.0), ("b", share)])


def test_malformed(registry: Registry) -> None:
    with pytest.raises(AdapterNameError):
        registry.aliases.put("a b", [("a", 1.0)])
    with pytest.raises(AdapterNameError):
        registry.aliases.put("prod", [("a b", 1.0)])
    for arms in ([], [("a", 1.0)] * 9):
        with pytest.raises(MixError):
            registry.aliases.put("prod", arms)
