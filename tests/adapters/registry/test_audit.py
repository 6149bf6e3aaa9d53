"""The audit log in the registry: what was added is found, however it is asked for, on either database."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tenants.audit import AuditRecord

FIELDS = ("who", "tenant", "action", "target")
values = st.sampled_from(["", "a", "b", "a'; DROP TABLE audit; --", "%", "ß/…\U0001f600"])
states = st.none() | st.booleans() | st.dictionaries(values, st.integers() | values | st.none(), max_size=3)


def record(number: int, time: float = 1.0, **fields: Any) -> AuditRecord:
    about = {"who": "key-1", "tenant": "acme", "action": "PUT /x", "target": "y", **fields}
    return AuditRecord(f"{number:08}", time, address="10.0.0.1", request="req-1", status=200, **about)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 100), values, values, values, values, states, states), max_size=12),
    st.tuples(st.floats(0, 100), st.floats(0, 100)),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=2),
    st.integers(1, 12),
)
def test_what_is_read_is_what_was_added(
    registry: Registry,
    drawn: list[tuple[float, str, str, str, str, Any, Any]],
    span: tuple[float, float],
    where: dict[str, str],
    limit: int,
) -> None:
    since, until = span
    registry.audit.remove_before(1e9)
    added = [
        record(number, time, who=who, tenant=tenant, action=action, target=target, before=before, after=after)
        for number, (time, who, tenant, action, target, before, after) in enumerate(drawn)
    ]
    if added:
        registry.audit.add(added)
    wanted = [
        each
        for each in added
        if since <= each.time < until and all(getattr(each, name) == value for name, value in where.items())
    ]
    wanted.sort(key=lambda each: (each.time, each.id), reverse=True)
    assert registry.audit.read(where=where, since=since, until=until, limit=limit) == wanted[:limit]


def test_what_is_old_is_forgotten(registry: Registry) -> None:
    registry.audit.add([record(number, float(number)) for number in range(5)])
    assert registry.audit.remove_before(3.0) == 3
    found = registry.audit.read(where={}, since=0, until=10, limit=10)
    assert [each.time for each in found] == [4.0, 3.0]


def test_records_are_added_together_or_not_at_all(registry: Registry) -> None:
    registry.audit.add([record(1)])
    with pytest.raises(StoreError):
        registry.audit.add([record(2), record(1), record(3)])
    assert [each.id for each in registry.audit.read(where={}, since=0, until=9, limit=9)] == ["00000001"]


def test_several_servers_add_at_a_time(registry: Registry) -> None:
    def add(server: int) -> None:
        for turn in range(20):
            registry.audit.add([record(1000 * server + turn)])

    threads = [threading.Thread(target=add, args=(server,)) for server in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.audit.read(where={}, since=0, until=9, limit=1000)) == 80
