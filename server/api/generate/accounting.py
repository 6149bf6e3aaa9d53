"""What the sequences of one request take of their tenant's limits, and what they have come to in the end."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Self

from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.adapters.registry.tenants.usage import Counts
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.engine.stream import Ended
from manylora.server.errors import RateLimited
from manylora.server.residency.held_mix import RevisionMix
from manylora.server.service import Service
from manylora.server.tenants.limits import Cost
from manylora.server.tenants.meter import Reservation


class Account:
    """The reservation of one set of prompts, which are submitted together within its block."""

    def __init__(
        self, service: Service, tenant: TenantRecord, model: str, reservations: Seq[Reservation]
    ) -> None:
        """``model`` is what usage calls what answers; ``reservations`` is what the prompts may take."""
        self._reservations = reservations
        self._tenant, self._model, self._usage = tenant, model, service.tenants.usage
        self._metrics = service.metrics.tenants
        self._prompt = self._completion = self._cached = self._open = self._submitted = 0
        self._complete = False  # all that will be submitted is

    @classmethod
    async def open(
        cls, service: Service, tenant: TenantRecord, mix: RevisionMix, prompts: Seq[GenerateRequest]
    ) -> Self:
        """Reserve what the prompts and their answers may take, of all limits that the tenant has.

        Raises:
            RequestError: more than the tenant may ever take.
            RateLimited: more than it may take now.
        """
        prompt = sum(_prompt_tokens(each) for each in prompts)
        completion = sum(each.n * each.params.max_tokens for each in prompts)
        cost = Cost(prompt, completion)
        try:
            reservations = await service.tenants.meters.reserve(tenant, mix.names, cost)
        except RateLimited:
            service.metrics.tenants.limited(tenant.name)
            raise
        return cls(service, tenant, mix.label, reservations)

    def submitted(self, prompt: GenerateRequest) -> None:
        """The engine has taken a prompt, so that each of its sequences will end."""
        self._prompt += _prompt_tokens(prompt)
        self._open += prompt.n
        self._submitted += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._complete = True
        self._settle_at_end()

    def counting(self, prompt: GenerateRequest, ended: Ended | None) -> Ended:
        """What hears of the end of each sequence of ``prompt``, and tells ``ended``."""
        given = len(prompt.given_ids)

        def hear(sequence: Sequence, reason: FinishReason) -> None:
            self._completion += max(0, sequence.num_output_tokens - given)
            self._cached += sequence.num_cached_tokens if sequence.index == 0 else 0
            self._open -= 1
            self._settle_at_end()
            if ended is not None:
                ended(sequence, reason)

        return hear

    def _settle_at_end(self) -> None:
        if not self._complete or self._open:
            return
        used = Cost(self._prompt, self._completion, int(self._submitted > 0))
        for reservation in self._reservations:
            reservation.settle(used)
        if self._submitted:
            counts = Counts(1, self._prompt, self._cached, self._completion)
            self._usage.add(self._tenant, self._model, counts)
            self._metrics.ended(
                self._tenant.name, prompt=self._prompt, cached=self._cached, completion=self._completion
            )


def _prompt_tokens(request: GenerateRequest) -> int:
    """Tokens that are given: of the prompt, and of an answer's beginning."""
    return len(request.prompt_ids) + request.n * len(request.given_ids)
