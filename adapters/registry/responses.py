"""The answers of ``/v1/responses`` that clients may go on from: bounded, and gone after a time."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select

from manylora.adapters.registry.schema import Database, responses


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """One response; what ``document`` holds is the business of who writes it."""

    id: str
    document: bytes


class Responses:
    """The registry's responses, shared by all servers of the registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, record: ResponseRecord, *, lifetime: float, capacity: int) -> bool:
        """Keep a response, in place of one of its id; whether there was room for it.

        Args:
            record: what is kept; compressed.
            lifetime: seconds from now.
            capacity: bytes that all responses together may take; the oldest go for new ones.

        Raises:
            StoreError: it can't be kept.
        """
        packed, now = zlib.compress(record.document), time.time()
        if len(packed) > capacity:
            return False
        row = {"id": record.id, "created": now, "expires": now + lifetime, "nbytes": len(packed)}
        with self._database.write_quietly() as connection:
            gone = (responses.c.id == record.id) | (responses.c.expires <= now)
            connection.execute(delete(responses).where(gone))
            held = connection.execute(select(func.sum(responses.c.nbytes))).scalar() or 0
            excess = int(held) + len(packed) - capacity
            oldest = select(responses.c.id, responses.c.nbytes).order_by(responses.c.created)
            for response_id, nbytes in connection.execute(oldest).fetchall() if excess > 0 else ():
                if excess <= 0:
                    break
                connection.execute(delete(responses).where(responses.c.id == response_id))
                excess -= nbytes
            connection.execute(insert(responses).values({**row, "document": packed}))
        return True

    def get(self, response_id: str) -> ResponseRecord | None:
        """The response of that id, or None if there is none, or its time has come."""
        lives = (responses.c.id == response_id) & (responses.c.expires > time.time())
        with self._database.read() as connection:
            packed = connection.execute(select(responses.c.document).where(lives)).scalar()
        return None if packed is None else ResponseRecord(response_id, zlib.decompress(packed))

    def remove(self, response_id: str) -> bool:
        """Forget a response; whether it was there."""
        with self._database.write_quietly() as connection:
            return connection.execute(delete(responses).where(responses.c.id == response_id)).rowcount > 0
