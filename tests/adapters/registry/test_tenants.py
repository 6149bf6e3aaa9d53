"""Tenants and keys in the registry: what is kept, who hears of changes, and what can't be."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import TenantExists, TenantNotFound
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.schema import Database, metadata
from manylora.adapters.registry.tenants import tenants as module
from manylora.adapters.registry.tenants.records import (
    KEY_PATTERN,
    TenantLimits,
    TenantRecord,
    TenantSettings,
    digest_of_key,
    is_pattern,
    is_tenant_name,
    matches,
)
from manylora.adapters.registry.tenants.tables import tenants

SETTINGS = TenantSettings(("acme/*", "shared"), False, {"plan": "gold ✓"}, TenantLimits(3, None, 10**12), 2.5)


def test_a_tenant_is_kept_as_it_was_made(registry: Registry, url: str) -> None:
    made = registry.tenants.add("acme", SETTINGS)
    record, key = registry.tenants.add_key("acme", 60.0)
    with Registry(url) as later:
        found = later.tenants.snapshot()
    assert found is not None
    assert found.tenants == (made,)
    assert found.keys == (record,)
    assert record.digest == digest_of_key(key)
    assert key.startswith(record.prefix)
    assert re.fullmatch(KEY_PATTERN, key)
    assert record.expires == pytest.approx(record.created + 60)


def test_no_key_is_in_the_database(registry: Registry, url: str) -> None:
    registry.tenants.add("acme", SETTINGS)
    record, key = registry.tenants.add_key("acme")
    with closing(Database(url)) as database, database.read() as connection:
        told = [str(row) for table in metadata.sorted_tables for row in connection.execute(table.select())]
    assert any(record.id in row for row in told)
    assert not any(key[12:] in row for row in told)
    if url.startswith("sqlite"):  # nor in what the file keeps of earlier writes
        files = Path(url.removeprefix("sqlite:///")).parent.glob("registry*")
        assert not any(key[12:].encode() in file.read_bytes() for file in files)


def test_only_changes_are_read_again(registry: Registry, url: str) -> None:
    first = registry.tenants.snapshot()
    assert first is not None
    assert registry.tenants.snapshot(first.generation) is None
    registry.aliases.put("x", [("a", 1.0)])
    assert registry.tenants.snapshot(first.generation) is None
    since = first.generation
    with Registry(url) as other:
        other.tenants.add("acme", SETTINGS)
        record, _ = other.tenants.add_key("acme")
        for change in (
            lambda: other.tenants.change("acme", lambda s: replace(s, base=True)),
            lambda: other.tenants.rotate_key("acme", record.id, overlap=5),
            lambda: other.tenants.remove_key("acme", record.id),
            lambda: other.tenants.remove("acme"),
        ):
            change()
            found = registry.tenants.snapshot(since)
            assert found is not None
            assert found.generation > since
            since = found.generation
    last = registry.tenants.snapshot()
    assert last is not None
    assert (last.tenants, last.keys) == ((), ())


def test_mirrors_of_names_do_not_mind(registry: Registry) -> None:
    before, _ = registry.changes(0)
    registry.tenants.add("acme", SETTINGS)
    assert registry.changes(before) == (before + 1, ["@tenants"])


def test_names_are_taken_once_and_ids_never_again(registry: Registry) -> None:
    first = registry.tenants.add("acme", SETTINGS)
    with pytest.raises(TenantExists, match="'acme'"):
        registry.tenants.add("acme", SETTINGS)
    registry.tenants.add_key("acme")
    assert registry.tenants.remove("acme") == first
    second = registry.tenants.add("acme", SETTINGS)
    assert second.id != first.id
    found = registry.tenants.snapshot()
    assert found is not None
    assert found.keys == ()


@pytest.mark.parametrize("name", ["nobody", "", "a\0b", "x" * 200, "é"])
def test_what_is_not_there_is_not_found(registry: Registry, name: str) -> None:
    registry.tenants.add("acme", SETTINGS)
    with pytest.raises(TenantNotFound):
        registry.tenants.remove(name)
    with pytest.raises(TenantNotFound):
        registry.tenants.change(name, lambda s: s)
    with pytest.raises(TenantNotFound):
        registry.tenants.add_key(name)
    with pytest.raises(TenantNotFound):
        registry.tenants.remove_key("acme", name)
    with pytest.raises(TenantNotFound):
        registry.tenants.rotate_key("acme", name, overlap=0)


def test_a_key_is_revoked_by_its_own_tenant_only(registry: Registry) -> None:
    registry.tenants.add("acme", SETTINGS)
    registry.tenants.add("globex", SETTINGS)
    record, _ = registry.tenants.add_key("acme")
    with pytest.raises(TenantNotFound):
        registry.tenants.remove_key("globex", record.id)
    with pytest.raises(TenantNotFound):
        registry.tenants.rotate_key("globex", record.id, overlap=0)
    assert registry.tenants.remove_key("acme", record.id) == record


def test_rotation_never_lengthens_a_key(registry: Registry) -> None:
    registry.tenants.add("acme", SETTINGS)
    short, _ = registry.tenants.add_key("acme", 10.0)
    long, _ = registry.tenants.add_key("acme")
    registry.tenants.rotate_key("acme", short.id, overlap=1000)
    made, _ = registry.tenants.rotate_key("acme", long.id, overlap=1000, lifetime=5)
    found = registry.tenants.snapshot()
    assert found is not None
    ends = {key.id: key.expires for key in found.keys}
    assert ends[short.id] == short.expires
    assert ends[long.id] == pytest.approx(time.time() + 1000, abs=5)
    assert ends[made.id] == made.expires == pytest.approx(made.created + 5)


def test_keys_are_bounded_and_expired_ones_make_room(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    registry.tenants.add("acme", SETTINGS)
    registry.tenants.add_key("acme", 0.0)
    for _ in range(3):
        registry.tenants.add_key("acme")
    with pytest.raises(TenantExists, match="revoke"):
        registry.tenants.add_key("acme")


def test_changes_at_the_same_time_are_all_made(registry: Registry) -> None:
    registry.tenants.add("acme", TenantSettings())

    def add(which: int) -> None:
        registry.tenants.change("acme", lambda s: replace(s, adapters=(*s.adapters, f"a{which}")))

    threads = [threading.Thread(target=add, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = registry.tenants.snapshot()
    assert found is not None
    assert set(found.tenants[0].settings.adapters) == {f"a{which}" for which in range(8)}


def test_a_database_from_before_tenants_gets_what_it_lacks(tmp_path: Path) -> None:
    url, path = f"sqlite:///{tmp_path}/r.sqlite3", tmp_path / "r.sqlite3"
    with Registry(url) as registry:
        registry.aliases.put("x", [("a", 1.0)])
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE manylora_keys")
        connection.execute("DROP TABLE manylora_tenants")
    with Registry(url) as registry:
        registry.tenants.add("acme", SETTINGS)
        assert registry.aliases.get("x").arms == (("a", 1.0),)


def test_what_a_newer_version_wrote_is_read_as_far_as_it_is_known(registry: Registry, url: str) -> None:
    registry.tenants.add("acme", SETTINGS)
    row = {"adapters": ["x"], "base": True, "metadata": {}, "limits": {"later": 1, "tokens_per_minute": 2}}
    with closing(Database(url)) as database, database.write_quietly() as connection:
        connection.execute(tenants.update().values(settings=json.dumps({**row, "later": 3})))
    found = registry.tenants.snapshot()
    assert found is not None
    assert found.tenants[0].settings == TenantSettings(("x",), limits=TenantLimits(tokens_per_minute=2))


names = st.text(alphabet="ab/*", max_size=12)


@given(names, names.map(lambda name: name.replace("*", "")))
def test_patterns_are_shell_patterns_of_stars(pattern: str, name: str) -> None:
    assert matches(pattern, name) == fnmatchcase(name, pattern)


def test_patterns_take_linear_time() -> None:
    began = time.perf_counter()
    assert not matches("*a" * 60 + "*b", "a" * 128)
    assert time.perf_counter() - began < 0.1


def test_without_patterns_nothing_is_listed() -> None:
    tenant = TenantRecord("1", "acme", 0.0, TenantSettings())
    assert not tenant.lists("x")
    tenant = replace(tenant, settings=SETTINGS)
    names = ("acme/x", "acme/", "acme", "shared", "shared2", "Acme/x")
    assert [name for name in names if tenant.lists(name)] == ["acme/x", "acme/", "shared"]


@pytest.mark.parametrize(
    ("pattern", "listed"),
    [("*", False), ("glo*", False), ("globex*", False), ("globex/*", True), ("globex/x", True)],
)
def test_patterns_are_about_what_is_anothers_only_if_they_say_so(pattern: str, listed: bool) -> None:
    tenant = TenantRecord("1", "acme", 0.0, TenantSettings((pattern,)))
    assert tenant.lists("globex/x", "globex/") == listed
    assert tenant.lists("globex/x")  # while nobody is called so


@pytest.mark.parametrize("text", ["", "a+b", "a@b", "a b", "a**", "a\n", "a" * 129, "a\0"])
def test_what_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize(("text", "fits"), [("acme", True), ("a.b-c_1", True), ("-a", False), ("a/b", False),
                                            ("a\n", False), ("", False), ("a" * 65, False)])  # fmt: skip
def test_names_of_tenants(text: str, fits: bool) -> None:
    assert is_tenant_name(text) == fits
