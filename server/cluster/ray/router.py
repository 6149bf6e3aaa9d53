"""Ray Serve's request router by what replicas hold: carries :class:`AffinityRouter`'s choices out."""

from __future__ import annotations

from time import monotonic
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from manylora.server.cluster.affinity import AffinityOptions, AffinityRouter
from manylora.server.cluster.fleet import Report
from manylora.server.cluster.ray.call import Call


class AdapterAffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes have no types here
    """One for each process that sends requests to replicas; they agree by hashing, without a word."""

    def initialize_state(self, **options: Any) -> None:
        """Take the fields of :class:`AffinityOptions`, as ``request_router_kwargs`` gives them."""
        self._router = AffinityRouter(AffinityOptions(**options))
        self._there: frozenset[str] = frozenset()
        self._reports: dict[str, object] = {}  # the last of each replica, to tell whether one is new
        self._open: dict[str, str] = {}  # calls that were sent -> their replica

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas that may answer, the best first."""
        call = _call_of(pending_request)
        if pending_request is None or call is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where all are full, wait a little
        found = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if call.target is not None:
            return [[found[call.target]]] if call.target in found else [candidate_replicas]
        self._look(found)
        now = monotonic()
        if not call.note.counted:
            call.note.counted = True
            self._router.asked(call.asked.members, call.asked.tokens, now)
        copies = self._router.fleet.holders(call.asked.copy, now) if call.asked.copy else None
        if copies:  # no other replica can answer
            return [[found[replica] for replica in sorted(copies)]]
        choice = self._router.choose(call.asked.members, now)
        call.note.prefetch.extend(choice.prefetch)
        return [[found[replica] for replica in group] for group in choice.groups]

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: object,  # noqa: ARG002  (Ray's signature)
    ) -> None:
        """A replica has taken a request."""
        call = _call_of(pending_request)
        if call is None or call.target is not None:
            return
        call.note.replica = replica_id.unique_id
        held = call.asked.members if call.asked.copy is None else (*call.asked.members, call.asked.copy)
        self._router.sent(replica_id.unique_id, held, monotonic())  # a copy is made where it was asked for

    def on_request_completed(
        self,
        replica_id: ReplicaID,
        internal_request_id: str,  # noqa: ARG002  (Ray's signature)
    ) -> None:
        """A request has its answer, or none."""
        self._router.ended(replica_id.unique_id)

    def _look(self, found: dict[str, RunningReplica]) -> None:
        """Take over which replicas there are, and what is new of what they say."""
        if found.keys() != self._there:
            self._there = frozenset(found)
            self._router.set_replicas(sorted(found))
            self._reports = {name: told for name, told in self._reports.items() if name in found}
        for name, replica in found.items():
            stats = replica.routing_stats
            if stats and stats is not self._reports.get(name):
                self._reports[name] = stats
                self._router.report(name, Report(stats["resident"], stats["ongoing"], stats["capacity"]))


def _call_of(pending: PendingRequest | None) -> Call | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, Call) else None
