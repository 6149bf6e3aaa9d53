"""What the arms of aliases have come to: added up in the database, by any number of servers."""

from __future__ import annotations

from contextlib import closing

import pytest

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.schema import Database


def counts(registry: Registry, alias: str = "x") -> dict[str, dict[str, float]]:
    return {target: dict(arm.counts) for target, arm in registry.arms.totals(alias)[1].items()}


def test_counts_of_all_servers_add_up(registry: Registry, url: str) -> None:
    registry.aliases.put("x", [("a", 3.0), ("b", 1.0)])
    assert counts(registry) == {"a": {}, "b": {}}
    with Registry(url, owner="other") as other:
        registry.arms.add({("x", "a"): {"stop": 2, "seconds": 0.5}, ("x", "b"): {"stop": 1}})
        other.arms.add({("x", "a"): {"stop": 1, "seconds": 0.25, "length": 1}})
        assert counts(other) == {"a": {"stop": 3, "seconds": 0.75, "length": 1}, "b": {"stop": 1}}
    with Registry(url, owner="later") as later:
        assert counts(later) == counts(registry)


def test_counting_is_no_news(registry: Registry) -> None:
    registry.aliases.put("x", [("a", 1.0)])
    before, _ = registry.changes(0)
    registry.arms.add({("x", "a"): {"stop": 1}})
    assert registry.changes(before) == (before, [])


def test_targets_that_stay_keep_their_counts(registry: Registry) -> None:
    registry.aliases.put("x", [("a", 3.0), ("b", 1.0)])
    registry.arms.add({("x", "a"): {"stop": 2}, ("x", "b"): {"stop": 1}})
    since = registry.arms.totals("x")[1]["a"].since
    registry.aliases.put("x", [("c", 1.0), ("a", 1.0)])
    registry.arms.add({("x", "b"): {"stop": 7}})  # told late, by a server that did not know yet
    assert counts(registry) == {"c": {}, "a": {"stop": 2}}
    assert registry.arms.totals("x")[1]["a"].since == since
    assert registry.arms.totals("x")[1]["c"].since >= since
    registry.aliases.put("x", [("a", 1.0), ("b", 1.0)])
    assert counts(registry) == {"a": {"stop": 2}, "b": {}}
    registry.aliases.put("x", [("a", 1.0), ("b", 1.0)], reset=True)
    assert counts(registry) == {"a": {}, "b": {}}


def test_counts_go_with_the_alias(registry: Registry) -> None:
    registry.aliases.put("x", [("a", 1.0)])
    registry.aliases.put("y", [("a", 1.0)])
    registry.arms.add({("x", "a"): {"stop": 2}, ("y", "a"): {"stop": 5}})
    registry.aliases.remove("x")
    registry.arms.add({("x", "a"): {"stop": 2}})
    with pytest.raises(AdapterNotFound):
        registry.arms.totals("x")
    registry.aliases.put("x", [("a", 1.0)])
    assert counts(registry) == {"a": {}}
    assert counts(registry, "y") == {"a": {"stop": 5}}


def test_an_alias_that_is_older_than_the_table(registry: Registry, url: str) -> None:
    registry.aliases.put("x", [("a", 1.0), ("a", 2.0), ("b", 1.0)])
    with closing(Database(url)) as database, database.write() as (connection, _):
        connection.exec_driver_sql("DELETE FROM manylora_arms")
    assert counts(registry) == {"a": {}, "b": {}}
    registry.arms.add({("x", "a"): {"stop": 2}, ("x", "gone"): {"stop": 1}})
    assert counts(registry) == {"a": {"stop": 2}, "b": {}}
