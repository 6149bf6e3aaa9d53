"""Requests are counted by the name they asked for and by the revision they run with, apart."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from manylora.adapters.registry.publication_record import read_record
from manylora.server.names.status import Deleted
from manylora.server.residency.held_mix import HeldMix
from tests.support.adapter_manager import ManagerSetup


async def load_twins(setup: ManagerSetup, *names: str) -> None:
    """Publish one content under several names."""
    path = setup.write("content", seed=3)
    for name in names:
        await setup.manager.admin.load(name, path)


def running(setup: ManagerSetup, name: str) -> int:
    return setup.manager.views.status(name).references


def of_revision(setup: ManagerSetup, name: str) -> int:
    """Requests that run with the name's current revision."""
    status = setup.manager.views.status(name)
    assert status.digest is not None
    return status.revision_references[status.digest]


async def test_a_deletion_waits_for_the_requests_by_its_name(setup: ManagerSetup) -> None:
    await load_twins(setup, "one", "two")
    held = [await setup.hold("one") for _ in range(3)]
    assert (running(setup, "one"), running(setup, "two")) == (3, 0)
    assert (of_revision(setup, "one"), of_revision(setup, "two")) == (3, 3)
    deletion = asyncio.create_task(setup.manager.deletions.delete("one", 60))
    await setup.until_draining("one")
    for mix in held[1:]:
        mix.release()
    assert running(setup, "one") == 1
    assert not deletion.done()
    held[0].release()
    assert await deletion == Deleted(0, drained=True, running=0), "the other name has the revision"
    digest = setup.manager.views.get("two").digest
    recorded = read_record(setup.store.path(digest), digest)
    assert recorded is not None
    assert [each.name for each in recorded.names] == ["two"]
    assert (await setup.hold("two")).served_model.startswith("two@")


async def test_requests_by_another_name_hold_nothing_up(setup: ManagerSetup) -> None:
    await load_twins(setup, "one", "two")
    held = await setup.hold("two")
    assert await setup.manager.deletions.delete("one", 60) == Deleted(0, drained=True, running=0)
    assert running(setup, "two") == 1
    held.release()
    assert (await setup.manager.deletions.delete("two")).bytes_freed == setup.unit
    setup.check()


async def test_a_deadline_that_passes_counts_its_own(setup: ManagerSetup) -> None:
    await load_twins(setup, "one", "two")
    ones = [await setup.hold("one") for _ in range(2)]
    two = await setup.hold("two")
    assert await setup.manager.deletions.delete("one", 0.0) == Deleted(0, drained=False, running=2)
    # Nothing runs by this name any more, but its bytes are held by what ran by the other one.
    two.release()
    assert await setup.manager.deletions.delete("two", 0.0) == Deleted(0, drained=True, running=0)
    for held in ones:
        held.release()
    await setup.quiet()
    assert setup.pool.used_bytes == 0
    assert setup.store.digests() == []
    setup.check()


async def test_holders_of_one_request_are_one(setup: ManagerSetup) -> None:
    """A request with several prompts, or one that is compared, holds its mix several times."""
    await setup.load("a")
    held = await setup.hold("a")
    more = [held.share(), held.again(), held.share()]
    assert running(setup, "a") == of_revision(setup, "a") == 1
    held.release()
    held.release()
    assert running(setup, "a") == 1
    for holder in more:
        holder.release()
    assert running(setup, "a") == of_revision(setup, "a") == 0
    setup.check()


async def test_a_revision_by_its_digest_and_an_alias_count_for_their_name(setup: ManagerSetup) -> None:
    await load_twins(setup, "one", "two")
    digest = setup.manager.views.get("one").digest
    await setup.manager.aliases.put("live", [("one", 1.0)])
    held = [await setup.hold(model) for model in (f"one@{digest[:8]}", "live", "one*0.5+two")]
    assert (running(setup, "one"), running(setup, "two")) == (3, 1)
    assert of_revision(setup, "one") == 3
    for mix in held:
        mix.release()
    setup.check()


async def test_a_mix_that_cancels_itself_out(setup: ManagerSetup) -> None:
    await setup.load("a")
    held = await setup.hold("a*0.5+a*-0.5")
    assert running(setup, "a") == 1
    held.release()
    assert running(setup, "a") == 0
    setup.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_counts_over_generated_requests(setup: ManagerSetup, seed: int) -> None:
    rng = random.Random(seed)
    await load_twins(setup, "one", "two")
    await setup.load("a", "b")
    names = ["one", "two", "a", "b"]
    opened: list[tuple[set[str], list[HeldMix]]] = []
    for _ in range(80):
        if opened and rng.random() < 0.5:
            asked, holders = rng.choice(opened)
            if rng.random() < 0.3:
                holders.append(holders[0].again())
            else:
                holders.pop(rng.randrange(len(holders))).release()
                if not holders:
                    opened.remove((asked, holders))
        else:
            asked = set(rng.sample(names, rng.randint(1, 3)))
            opened.append((asked, [await setup.resolve("+".join(sorted(asked)))]))
        by_name = Counter(name for asked, _ in opened for name in asked)
        twins = sum(bool(asked & {"one", "two"}) for asked, _ in opened)
        assert {name: running(setup, name) for name in names} == {name: by_name[name] for name in names}
        assert of_revision(setup, "one") == of_revision(setup, "two") == twins
    for _, holders in opened:
        for held in holders:
            held.release()
    setup.check()
