"""What servers take of limits, in the registry's database."""

from __future__ import annotations

import threading

from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tenants.taken import ALIVE_SECONDS, COUNTS_SECONDS, Asked, Key


def test_servers_that_ask_at_once_never_get_more_than_there_is(registry: Registry, url: str) -> None:
    granted: dict[str, int] = {}

    def ask(server: str) -> None:
        with Registry(url) as own:
            for _ in range(10):
                floor = granted.get(server, 0)
                asked = {Key("t"): {"tokens": Asked(100, floor, floor, 7)}}
                granted[server] = own.taken.exchange(server, 1000.0, asked)[Key("t")]["tokens"].ceiling

    threads = [threading.Thread(target=ask, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 90 < sum(granted.values()) <= 100


def test_what_a_lost_server_held_counts_for_a_minute(registry: Registry) -> None:
    key = Key("t", "acme/support")
    asked = {key: {"requests": Asked(10, 8, 8)}}
    assert registry.taken.arrive("lost", 0.0) == 1
    assert registry.taken.arrive("other", 1.0) == 2
    registry.taken.exchange("lost", 0.0, asked)
    wanted = {key: {"requests": Asked(10, 0, 0, 10)}}
    assert registry.taken.exchange("other", COUNTS_SECONDS - 1, wanted)[key]["requests"].ceiling == 0
    assert registry.taken.exchange("other", COUNTS_SECONDS + 1, wanted)[key]["requests"].ceiling == 10
    registry.taken.arrive("other", COUNTS_SECONDS + 1)
    assert registry.taken.count(COUNTS_SECONDS + 1) == 1
    registry.taken.leave("other")
    assert registry.taken.count(COUNTS_SECONDS + 1) == 0


def test_what_ran_on_a_lost_server_has_ended_with_it(registry: Registry) -> None:
    key = Key("t")
    registry.taken.exchange("lost", 0.0, {key: {"running": Asked(10, 10, 10, held=True)}})
    wanted = {key: {"running": Asked(10, 0, 0, 10, held=True)}}
    assert registry.taken.exchange("other", ALIVE_SECONDS - 1, wanted)[key]["running"].ceiling == 0
    assert registry.taken.exchange("other", ALIVE_SECONDS + 1, wanted)[key]["running"].ceiling == 10
