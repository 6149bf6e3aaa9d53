"""Names and revisions, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from manylora.adapters.errors import AdapterDeleted, AdapterExists, AdapterNameError, AdapterNotFound
from manylora.adapters.registry.records import NameRecord, State
from manylora.adapters.registry.registry import Registry
from tests.support.revision_records import digest, revision


def publish(registry: Registry, name: str, text: str = "one", **options: object) -> None:
    settings: dict[str, object] = {"replace": True, "source": f"file:///{text}", **options}
    registry.names.set_revision(name, revision(text), **settings)  # type: ignore[arg-type]


def test_the_life_of_a_name(registry: Registry) -> None:
    began = registry.names.announce("support", "s3://bucket/support", ["eu", "beta"])
    assert (began.state, began.digest, began.history, began.owner) == (State.LOADING, None, (), "me")
    assert (began.source, began.tags, began.pinned) == ("s3://bucket/support", ("beta", "eu"), False)
    ready = registry.names.set_revision("support", revision(), replace=False, source="s3://bucket/support")
    assert (ready.state, ready.digest, ready.owner) == (State.READY, digest("one"), "")
    assert ready.tags == ("beta", "eu"), "tags that are not given stay"
    assert registry.names.get("support") == ready
    registry.names.drain("support")
    assert registry.names.get("support").state is State.DRAINING
    assert registry.names.get("support").owner == "me"
    assert registry.names.remove("support", state=State.DRAINING).digest == digest("one")
    names = registry.names
    for gone in (names.get, names.drain, names.remove, lambda name: names.set_pinned(name, True)):
        with pytest.raises(AdapterNotFound):
            gone("support")
    assert registry.revisions.find([digest("one")]) == {}


def test_a_revision_reads_back(registry: Registry) -> None:
    facts = revision(
        lineage={"members": [["a", 0.5]], "method": "svd"},
        details={"warnings": ["ü\0\ud800", 1, None, True]},
        base_model_name=None,
        base_fingerprint=None,
        nbytes=1 << 40,
    )
    registry.names.set_revision("a", facts, replace=False, source="x")
    assert registry.revisions.find([facts.digest, digest("two"), "\0"]) == {facts.digest: facts}


def test_a_revision_published_again_keeps_its_time(registry: Registry) -> None:
    registry.names.set_revision("a", revision(created=1.0), replace=False, source="x")
    registry.names.set_revision("b", revision(created=2.0, details={"new": 1}), replace=False, source="y")
    facts = registry.revisions.find([digest("one")])[digest("one")]
    assert facts.created == 1.0
    assert facts.details == {"new": 1}


def test_a_taken_name(registry: Registry) -> None:
    publish(registry, "a", "one")
    with pytest.raises(AdapterExists, match="taken"):
        publish(registry, "a", "two", replace=False)
    assert registry.names.get("a").digest == digest("one")
    assert registry.revisions.find([digest("two")]) == {}
    registry.names.drain("a")
    publish(registry, "a", "two", replace=False)  # nobody waits for a deletion to end
    assert registry.names.get("a").digest == digest("two")


def test_a_failed_first_attempt_and_a_second(registry: Registry) -> None:
    registry.names.announce("a", "there")
    registry.names.fail("a", "no \0 such \ud800 file " + "x" * 10000)
    failed = registry.names.get("a")
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error.startswith("no \\x00 such \\ud800 file x")
    assert len(failed.error) < 5000
    again = registry.names.announce("a", "elsewhere", ["t"])
    assert (again.state, again.error, again.source, again.tags) == (State.LOADING, None, "elsewhere", ("t",))
    publish(registry, "a", replace=False)  # nobody is served by it yet, so it is not taken


def test_a_failed_replacement_leaves_the_old_revision(registry: Registry) -> None:
    publish(registry, "a", "one")
    assert registry.names.announce("a", "two").state is State.READY
    registry.names.fail("a", "broken")
    record = registry.names.get("a")
    assert (record.state, record.digest, record.error) == (State.READY, digest("one"), "broken")
    assert record.source == "file:///one"
    assert registry.names.announce("a", "three").error is None
    registry.names.fail("missing", "removed meanwhile")
    assert [record.name for record in registry.names.page()] == ["a"]


def test_history_and_rollback(registry: Registry) -> None:
    for text in ("one", "two", "three", "two"):
        publish(registry, "a", text)
    assert registry.names.get("a").history == (digest("two"), digest("three"), digest("one"))
    back = registry.names.rollback("a", digest("one")[:8])
    assert back.digest == digest("one")
    facts = registry.revisions.find([digest("one")])[digest("one")]
    assert back.source == facts.source == "file:///srv/one"
    assert back.history == (digest("one"), digest("two"), digest("three"))
    for prefix in ("", "abc", "0000", digest("four"), "%", "\0", digest("one").upper()):
        with pytest.raises(AdapterNotFound):
            registry.names.rollback("a", prefix)
    with pytest.raises(AdapterNotFound):
        registry.names.rollback("b", digest("one"))


def test_an_ambiguous_prefix(registry: Registry) -> None:
    for tail in "ab":
        registry.names.set_revision("a", revision(digest="0" * 63 + tail), replace=True, source="x")
    with pytest.raises(AdapterNotFound, match="several"):
        registry.names.rollback("a", "0000")


def test_history_is_bounded_and_forgotten_with_the_name(registry: Registry) -> None:
    for number in range(20):
        publish(registry, "a", str(number))
    publish(registry, "b", "19")
    kept = {digest(str(number)) for number in range(4, 20)}
    assert set(registry.names.get("a").history) == registry.revisions.referenced() == kept
    assert set(registry.revisions.find(digest(str(n)) for n in range(20))) == kept
    registry.names.remove("a")
    assert registry.revisions.referenced() == {digest("19")}
    assert set(registry.revisions.find(kept)) == {digest("19")}


def test_a_name_published_again_while_it_drained_stays(registry: Registry) -> None:
    publish(registry, "a", "one")
    registry.names.drain("a")
    assert registry.names.announce("a", "two").state is State.DRAINING
    publish(registry, "a", "two")
    with pytest.raises(AdapterNotFound, match="not draining: it is ready"):
        registry.names.remove("a", state=State.DRAINING)
    assert registry.names.get("a").state is State.READY


def test_what_was_deleted_since_it_was_announced_is_not_published(registry: Registry) -> None:
    def refused(announced: NameRecord) -> None:
        with pytest.raises(AdapterDeleted, match="'a' was deleted while"):
            registry.names.announce("a", "x", announced=announced)
        with pytest.raises(AdapterDeleted):
            publish(registry, "a", "one", announced=announced)

    first = registry.names.announce("a", "x")
    assert registry.names.announce("a", "x", announced=first).created == first.created
    registry.names.drain("a")
    refused(first)
    late = registry.names.announce("a", "x")  # asked for after the deletion: it gives way
    registry.names.remove("a", state=State.DRAINING)
    refused(first)
    assert registry.names.page() == []
    publish(registry, "a", "one", announced=late)
    refused(first)
    assert registry.names.get("a").state is State.READY


def test_pages(registry: Registry) -> None:
    names = ["B", "Z-1", "a", "a.b", "a_b", "a_c", "ab", "b", "z"]
    for name in reversed(names):
        publish(registry, name, tags=["even"] if names.index(name) % 2 == 0 else [])
    registry.names.announce("a_d", "x")
    assert [r.name for r in registry.names.page(limit=4)] == ["B", "Z-1", "a", "a.b"]
    assert [r.name for r in registry.names.page(limit=4, after="a.b")] == ["a_b", "a_c", "a_d", "ab"]
    assert [r.name for r in registry.names.page(after="ab")] == ["b", "z"]
    everything = registry.names.page()
    assert len(everything) == 10
    assert [r.name for r in everything if r.tags == ("even",)] == ["B", "a", "a_b", "ab", "z"]
    assert [r.name for r in everything if r.state is State.LOADING] == ["a_d"]
    with pytest.raises(AdapterNameError):
        registry.names.page(after="\0")
    for limit in (0, 1001):
        with pytest.raises(ValueError, match="limit"):
            registry.names.page(limit=limit)


@pytest.mark.parametrize("name", ["", "a b", "a//b", "../a", "a\0", "\ud800", "x" * 129, "a%"])
def test_malformed_names(registry: Registry, name: str) -> None:
    with pytest.raises(AdapterNameError):
        registry.names.announce(name, "x")
    with pytest.raises(AdapterNameError):
        publish(registry, name)
    with pytest.raises(AdapterNotFound):
        registry.names.get(name)
    registry.names.touch({name: 1.0})
    assert registry.names.page() == []


@pytest.mark.parametrize("tags", [["a b"], [""], ["\0"], ["x" * 65], [f"t{n}" for n in range(33)]])
def test_malformed_tags(registry: Registry, tags: list[str]) -> None:
    with pytest.raises(AdapterNameError, match="tag"):
        registry.names.announce("a", "x", tags)
    with pytest.raises(AdapterNameError, match="tag"):
        publish(registry, "a", tags=tags)


def test_last_used_only_moves_forward(registry: Registry) -> None:
    publish(registry, "a")
    publish(registry, "b")
    before, _ = registry.changes(0)
    registry.names.touch({"a": 5.0, "missing": 1.0})
    registry.names.touch({"a": 3.0, "b": 2.5})
    registry.names.touch({})
    assert (registry.names.get("a").last_used, registry.names.get("b").last_used) == (5.0, 2.5)
    assert registry.changes(before) == (before, [])


def test_changes(registry: Registry) -> None:
    start, everything = registry.changes(0)
    assert everything == []
    steps: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: publish(registry, "a"), ["a"]),
        (lambda: registry.names.announce("b", "x"), ["b"]),
        (lambda: registry.names.fail("b", "y"), ["b"]),
        (lambda: registry.names.set_pinned("a", True), ["a"]),
        (lambda: registry.names.drain("a"), ["a"]),
        (lambda: registry.names.remove("a"), ["a"]),
        (lambda: registry.aliases.put("c", [("b", 1.0)]), ["c"]),
        (lambda: registry.aliases.remove("c"), ["c"]),
    ]
    at = start
    for step, expected in steps:
        step()
        later, changed = registry.changes(at)
        assert changed == expected
        assert later > at
        at = later
    assert registry.changes(at) == (at, [])
    assert registry.changes(start) == (at, ["a", "b", "c"])


def test_pins_and_unfinished(registry: Registry) -> None:
    publish(registry, "a")
    registry.names.set_pinned("a", True)
    publish(registry, "a", "two")
    assert registry.names.get("a").pinned, "a new revision stays pinned"
    registry.names.set_pinned("a", False)
    assert not registry.names.get("a").pinned
    registry.names.announce("b", "x")
    registry.names.announce("c", "x")
    registry.names.drain("a")
    registry.names.fail("c", "x")
    unfinished = [(record.name, record.state) for record in registry.recovery.unfinished()]
    assert unfinished == [("a", State.DRAINING), ("b", State.LOADING)]
