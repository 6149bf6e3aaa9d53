"""What the arms of aliases have come to: added up in the database, by any number of servers."""

from __future__ import annotations

import pytest

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.registry.registry import Registry


def counts(registry: Registry, alias: str = "x") -> dict[str, dict[str, float]]:
    return {target: dict(arm.counts) for target, arm in registry.arms(alias)[1].items()}


def test_counts_of_all_servers_add_up(registry: Registry, url: str) -> None:
    registry.put_alias("x", [("a", 3.0), ("b", 1.0)])
    assert counts(registry) == {"a": {}, "b": {}}
    with Registry(url, owner="other") as other:
        registry.add_to_arms({("x", "a"): {"stop": 2, "seconds": 0.5}, ("x", "b"): {"stop": 1}})
        other.add_to_arms({("x", "a"): {"stop": 1, "seconds": 0.25, "length": 1}})
        assert counts(other) == {"a": {"stop": 3, "seconds": 0.75, "length": 1}, "b": {"stop": 1}}
    with Registry(url, owner="later") as later:
        assert counts(later) == counts(registry)


def test_counting_is_no_news(registry: Registry) -> None:
    registry.put_alias("x", [("a", 1.0)])
    before, _ = registry.changes(0)
    registry.add_to_arms({("x", "a"): {"stop": 1}})
    assert registry.changes(before) == (before, [])


def test_targets_that_stay_keep_their_counts(registry: Registry) -> None:
    registry.put_alias("x", [("a", 3.0), ("b", 1.0)])
    registry.add_to_arms({("x", "a"): {"stop": 2}, ("x", "b"): {"stop": 1}})
    since = registry.arms("x")[1]["a"].since
    registry.put_alias("x", [("c", 1.0), ("a", 1.0)])
    registry.add_to_arms({("x", "b"): {"stop": 7}})  # told late, by a server that did not know yet
    assert counts(registry) == {"c": {}, "a": {"stop": 2}}
    assert registry.arms("x")[1]["a"].since == since
    assert registry.arms("x")[1]["c"].since >= since
    registry.put_alias("x", [("a", 1.0), ("b", 1.0)])
    assert counts(registry) == {"a": {"stop": 2}, "b": {}}
    registry.put_alias("x", [("a", 1.0), ("b", 1.0)], reset=True)
    assert counts(registry) == {"a": {}, "b": {}}


def test_counts_go_with_the_alias(registry: Registry) -> None:
    registry.put_alias("x", [("a", 1.0)])
    registry.put_alias("y", [("a", 1.0)])
    registry.add_to_arms({("x", "a"): {"stop": 2}, ("y", "a"): {"stop": 5}})
    registry.remove_alias("x")
    registry.add_to_arms({("x", "a"): {"stop": 2}})
    with pytest.raises(AdapterNotFound):
        registry.arms("x")
    registry.put_alias("x", [("a", 1.0)])
    assert counts(registry) == {"a": {}}
    assert counts(registry, "y") == {"a": {"stop": 5}}


def test_an_alias_that_is_older_than_the_table(registry: Registry) -> None:
    registry.put_alias("x", [("a", 1.0), ("a", 2.0), ("b", 1.0)])
    with registry._database.write() as (connection, _):
        connection.exec_driver_sql("DELETE FROM manylora_arms")
    assert counts(registry) == {"a": {}, "b": {}}
    registry.add_to_arms({("x", "a"): {"stop": 2}, ("x", "gone"): {"stop": 1}})
    assert counts(registry) == {"a": {"stop": 2}, "b": {}}
