"""Aliases: one target or a split, who gets which, and what they may point to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.errors import AdapterExists, AdapterInUse, AdapterNameError, AdapterNotFound, MixError
from manylora.adapters.mix import parse_mix
from manylora.adapters.registry.records import AliasArm, AliasRecord
from manylora.server.names.aliases import choose, expand, expand_sole
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness

SPLIT = AliasRecord("x", (("a", 3.0), ("b", 1.0)), 0.0, 0.0)


def test_a_user_always_gets_the_same_arm() -> None:
    users = [f"user{i}" for i in range(2000)]
    first = [choose(SPLIT, user) for user in users]
    assert first == [choose(SPLIT, user) for user in users]
    assert 0.71 < first.count("a") / len(first) < 0.79


def test_without_a_user_arms_are_drawn_by_their_shares() -> None:
    drawn = Counter(choose(SPLIT, None) for _ in range(2000))
    assert 0.70 < drawn["a"] / 2000 < 0.80


def test_moving_share_moves_only_the_users_in_between() -> None:
    users = [f"user{i}" for i in range(2000)]
    more = AliasRecord("x", (("a", 4.0), ("b", 1.0)), 0.0, 0.0)
    moved = [(choose(SPLIT, user), choose(more, user)) for user in users]
    assert {pair for pair in moved if pair[0] != pair[1]} == {("b", "a")}
    assert sum(one != two for one, two in moved) < 160


@given(st.text(), st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
def test_every_user_gets_some_arm(user: str, shares: list[float]) -> None:
    alias = AliasRecord("x", tuple((f"arm{i}", share) for i, share in enumerate(shares)), 0.0, 0.0)
    assert choose(alias, user) in {target for target, _ in alias.arms}


def test_a_split_has_no_sole_target() -> None:
    aliases = {"x": SPLIT, "y": AliasRecord("y", (("a*0.5", 1.0),), 0.0, 0.0)}
    assert expand_sole(parse_mix("y*2+c"), aliases, "base") == parse_mix("a+c")
    with pytest.raises(MixError, match="'x' splits its requests between a, b"):
        expand_sole(parse_mix("y+x"), aliases, "base")


def test_replacing_aliases_in_a_mix() -> None:
    aliases = {
        "x": AliasRecord("x", (("a*0.5+b@0123abcd", 1.0),), 0.0, 0.0),
        "y": AliasRecord("y", (("base", 1.0),), 0.0, 0.0),
    }
    mixed = parse_mix("a*0.25+b@0123abcd*0.5+c"), None
    assert expand(parse_mix("x*0.5+c+y"), aliases, "base", None) == mixed
    assert expand(parse_mix("a+c"), aliases, "base", None) == (parse_mix("a+c"), None)
    assert expand(parse_mix("y"), aliases, "base", None) == ((), AliasArm("y", "base"))
    with pytest.raises(AdapterNotFound, match="no revisions"):
        expand(parse_mix("x@0123"), aliases, "base", None)
    with pytest.raises(MixError, match="entries"):
        expand(parse_mix("+".join(["x"] * 5)), aliases, "base", None)
    heavy = {"x": AliasRecord("x", (("a*8", 1.0),), 0.0, 0.0)}
    with pytest.raises(MixError, match="'a\\*8' in alias 'x'"):
        expand(parse_mix("x*1.5"), heavy, "base", None)


async def test_requests_for_an_alias(setup: ManagerSetup) -> None:
    await setup.load("a", "b")
    digests = {name: setup.manager.views.get(name).digest[:8] for name in "ab"}
    await setup.manager.aliases.put("x", [("a", 1.0), (f"b@{digests['b']}", 1.0)])
    served: Counter[tuple[int, str]] = Counter()
    for user in range(40):
        for _ in range(2):
            held = await setup.resolve("x", user=f"user{user}")
            served[user, held.served_model] += 1
            held.release()
    assert set(served.values()) == {2}, "each of them got the same twice"
    assert {model for _, model in served} == {f"a@{digests['a']}", f"b@{digests['b']}"}
    held = await setup.hold("x*0.5")
    assert [weight for _, weight in held.mix.members] == [0.5]
    held.release()
    await setup.manager.aliases.delete("x")
    with pytest.raises(AdapterNotFound):
        await setup.hold("x")
    setup.check()


async def test_what_an_alias_may_be(setup: ManagerSetup) -> None:
    await setup.load("a")
    manager = setup.manager
    await manager.aliases.put("x", [("a", 2.0)])
    assert [alias.name for alias in manager.aliases.list()] == ["x"]
    assert manager.aliases.get("x").arms == (("a", 2.0),)
    for name, arms, error in [
        ("a", [("a", 1.0)], AdapterExists),
        ("base", [("a", 1.0)], AdapterExists),
        ("y", [("nobody", 1.0)], AdapterNotFound),
        ("y", [("a@0000dead", 1.0)], AdapterNotFound),
        ("y", [("x", 1.0)], MixError),
        ("y", [], MixError),
        ("y", [("a", 0.0)], MixError),
    ]:
        with pytest.raises(error):
            await manager.aliases.put(name, arms)
    with pytest.raises(AdapterExists, match="alias"):
        await manager.admin.load("x", setup.root / "a")
    with pytest.raises(AdapterNotFound, match="'x' is an alias, not an adapter"):
        await manager.admin.pin("x")
    with pytest.raises(AdapterNotFound):
        await manager.aliases.delete("y")
    await manager.aliases.put("y", [("base", 1.0)])
    assert (await setup.hold("y")).served_model == "base"


async def test_the_base_model_is_a_target_whatever_it_is_called(
    harness: EngineHarness, tmp_path: Path
) -> None:
    """ "org model" is no model string, and a server that starts later may call it something else."""
    for name in ("org model", "elsewhere"):
        with open_manager_setup(harness, tmp_path, base_name=name) as setup:
            manager = setup.manager
            await manager.start()
            if name == "org model":
                await setup.load("a")
                put = await manager.aliases.put("x", [("org model", 3.0), ("a", 1.0)])
                assert put.arms == (("org model", 3.0), ("a", 1.0))
            assert (
                manager.aliases.get("x").arms == manager.aliases.list()[0].arms == ((name, 3.0), ("a", 1.0))
            )
            served = [await setup.resolve("x", user=f"user{i}") for i in range(40)]
            assert {held.served_model.partition("@")[0] for held in served} == {name, "a"}
            for held in served:
                held.release()
            with pytest.raises(AdapterInUse, match="'x'"):
                await manager.deletions.delete("a")
            if name == "elsewhere":
                await manager.admin.load(
                    "a", setup.write("a2", seed=5), replace=True
                )  # aliases are read then
                with pytest.raises(AdapterNameError):
                    await manager.aliases.put("y", [("another model", 1.0)])
                await manager.aliases.delete("x")
            setup.check()
            await manager.close()


async def test_a_target_of_an_alias_is_not_deleted(setup: ManagerSetup) -> None:
    await setup.load("a")
    await setup.manager.aliases.put("x", [("a*0.5", 1.0)])
    with pytest.raises(AdapterInUse, match="'x'"):
        await setup.manager.deletions.delete("a")
    (await setup.hold("a")).release()
    await setup.manager.aliases.delete("x")
    assert (await setup.manager.deletions.delete("a")).drained


async def test_a_revision_that_an_alias_names_stays_in_the_history(setup: ManagerSetup) -> None:
    await setup.load("a")
    first = setup.manager.views.get("a").digest
    await setup.manager.aliases.put("x", [(f"a@{first[:8]}", 1.0)])
    for seed in range(6):
        await setup.manager.admin.load("a", setup.write("new", seed=50 + seed), replace=True)
    held = await setup.hold("x")
    assert held.served_model == f"a@{first[:8]}"
    held.release()
