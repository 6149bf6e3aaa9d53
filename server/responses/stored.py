"""Responses that clients go on from: each with all that was said before it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.responses import ResponseRecord, Responses

logger = logging.getLogger(__name__)

LIFETIME = 30 * 24 * 3600.0  # seconds, as at OpenAI

Item = dict[str, Any]  # of input or output, as clients see it
Event = dict[str, Any]  # of a stream; the one at place n of its stream has the sequence_number n


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and the conversation that it ends."""

    response: dict[str, Any]  # as clients see it
    input: list[Item]  # of its own request
    before: list[Item]  # input and output of all responses that it goes on from
    tenant: str | None = None  # whose it is, by id
    events: list[Event] | None = None  # of its stream, for one that runs in the background; None: not kept

    @property
    def id(self) -> str:
        """By which clients ask for it."""
        response_id: str = self.response["id"]
        return response_id

    @property
    def items(self) -> list[Item]:
        """The conversation with this answer."""
        output: list[Item] = self.response["output"]
        return [*self.before, *self.input, *output]


class StoredResponses:
    """Responses by id. They don't depend on each other: one may go and others go on from it."""

    def __init__(self, responses: Responses, capacity: int) -> None:
        """``capacity`` is in bytes; 0 keeps nothing."""
        self._responses = responses
        self._capacity = capacity

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._capacity > 0

    async def put(self, stored: StoredResponse) -> bool:
        """Keep a response; whether it could be. What can't be kept is still an answer."""
        if not self.keeps:
            return False
        record = ResponseRecord(stored.id, orjson.dumps(asdict(stored)))
        try:
            return await asyncio.to_thread(
                lambda: self._responses.put(record, lifetime=LIFETIME, capacity=self._capacity)
            )
        except StoreError as error:
            logger.warning("response %s is not kept: %s", stored.id, error)
            return False

    async def get(self, response_id: str) -> StoredResponse | None:
        """The response of that id, or None.

        Raises:
            StoreError: the database can't be read.
        """
        record = await asyncio.to_thread(self._responses.get, response_id)
        return None if record is None else StoredResponse(**orjson.loads(record.document))

    async def remove(self, response_id: str) -> bool:
        """Forget a response; whether it was there.

        Raises:
            StoreError: the database can't be written.
        """
        return await asyncio.to_thread(self._responses.remove, response_id)
