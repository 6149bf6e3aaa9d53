"""What a replica tells of itself, on a real service."""

from __future__ import annotations

from manylora.server.cluster.replica_state import ReplicaState
from tests.support.running_server import Running

COPY = "/v1/adapters/alpha*0.5+beta/merge"


def test_residents_are_what_answers_at_once(server: Running) -> None:
    state = ReplicaState(server.service, "one", "node")

    async def look() -> dict[str, int]:
        return state.resident()

    with server.http() as http:
        for name in ("alpha", "beta", "gamma"):
            assert http.post(f"/v1/adapters/{name}/prefetch").status_code == 200
        assert server.call(look()) == {"alpha": 4, "beta": 8, "gamma": 12}
        split = [{"target": "alpha", "share": 1}, {"target": "beta+gamma", "share": 1}]
        assert http.put("/v1/aliases/either", json={"split": split}).status_code < 300
        assert http.post("/v1/adapters/beta/evict").status_code == 200
        assert server.call(look()) == {"alpha": 4, "gamma": 12}
        server.call(state.prefetch(["beta", "nobody"]))
        assert server.call(look())["either"] == 12
        assert http.delete("/v1/aliases/either").status_code == 200
        assert http.post(COPY).status_code == 200
        assert server.call(look())["merged:alpha*0.5+beta*1.0"] == 0
        assert http.delete(COPY).status_code == 200


def test_numbers_are_those_of_the_engine(server: Running) -> None:
    state = ReplicaState(server.service, "one", "node")
    assert state.routing_stats() | {"resident": {}} == {"resident": {}, "ongoing": 0, "capacity": 16}
    assert state.load() == {"ongoing": 0.0, "capacity": 16.0, "adapters_waiting": 0.0}
    shown = state.shown()
    assert (shown["id"], shown["node"], shown["ready"], shown["sequences"]) == ("one", "node", True, 0)
    assert shown["merged_copies"] == []
