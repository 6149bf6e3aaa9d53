"""Keeps the lease of a job while it is trained, tells how it goes, and hears what its owner wants."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.tuning.leases import LEASE_SECONDS, LeaseLost, Said, TuningLeases
from manylora.adapters.registry.tuning.states import JobState

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
PAUSED, LOST, ENDING = "paused", "lost", "the worker ends"


class Heartbeat:
    """A thread beside the training of one job; use it in a ``with`` block."""

    def __init__(
        self,
        leases: TuningLeases,
        job_id: str,
        stop: Callable[[str], None],
        is_ending: Callable[[], bool],
    ) -> None:
        """
        Args:
            leases: of this worker.
            job_id: that this worker has.
            stop: asks the training to stop, and says why: PAUSED, LOST or ENDING.
            is_ending: whether this worker is to end.
        """
        self._leases, self._job, self._stop, self._is_ending = leases, job_id, stop, is_ending
        self._said: list[Said] = []
        self._found: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._silent = 0.0  # seconds since the registry was last reached
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def say(self, *said: Said, **found: Any) -> None:
        """Have the registry told at the next beat that the job got on."""
        with self._lock:
            self._said += said
            self._found |= found

    def flush(self) -> None:
        """Tell the registry now what is left to tell.

        Raises:
            LeaseLost: the job is not this worker's any more.
            StoreError: the registry can't be reached; nothing is forgotten.
        """
        with self._lock:
            said, found = self._said, self._found
            if not said and not found:
                return
            self._leases.tell(self._job, *said, got_on=True, **found)
            self._said, self._found = [], {}

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                self.flush()
                job = self._leases.renew(self._job)
                self._silent = 0.0
            except LeaseLost:
                self._stop(LOST)
                return
            except StoreError as error:
                self._silent += BEAT_SECONDS
                logger.warning("%s: %s", self._job, error)
                if self._silent > LEASE_SECONDS:  # somebody else may have it by now
                    self._stop(LOST)
                    return
                continue
            if job.status is JobState.PAUSED:
                self._stop(PAUSED)
            elif self._is_ending():
                self._stop(ENDING)
