"""The states of a fine-tuning job, and the one table that says who may take it from which to which.

    validating_files → queued → running → succeeded
          ⇅              ⇅        ⇅
        paused         paused   paused        any of them → failed | cancelled

Nothing goes back: a job that is paused remembers where it was, and goes on from there. A job that is being
worked on and whose worker dies stays what it is; another worker takes it up. Whatever changes a job's status
goes through :func:`check`, inside the transaction that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """What has become of a job; OpenAI's words."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Actor(StrEnum):
    """Who changes a job."""

    OWNER = "owner"  # whoever may see it, over HTTP
    WORKER = "worker"  # the process that has its lease


class Need(StrEnum):
    """The work that a job waits for next."""

    VALIDATION = "validation"  # of its files
    TRAINING = "training"
    PUBLICATION = "publication"  # of what was trained


class NotAllowed(Exception):
    """The job's state does not allow that; ``state`` is what it is."""

    def __init__(self, state: JobState) -> None:
        super().__init__(f"the job is {state}")
        self.state = state


_S, _OWNER, _WORKER = JobState, Actor.OWNER, Actor.WORKER

# From, to: who may. What is not here nobody may.
TRANSITIONS: Final[Mapping[tuple[JobState, JobState], Actor]] = {
    (_S.VALIDATING, _S.QUEUED): _WORKER,  # the files are sound
    (_S.VALIDATING, _S.FAILED): _WORKER,  # they are not
    (_S.QUEUED, _S.RUNNING): _WORKER,  # it begins
    (_S.QUEUED, _S.FAILED): _WORKER,  # it can't begin
    (_S.RUNNING, _S.SUCCEEDED): _WORKER,  # the model answers
    (_S.RUNNING, _S.FAILED): _WORKER,
    (_S.VALIDATING, _S.PAUSED): _OWNER,
    (_S.QUEUED, _S.PAUSED): _OWNER,
    (_S.RUNNING, _S.PAUSED): _OWNER,
    (_S.PAUSED, _S.VALIDATING): _OWNER,  # back to where it was, and nowhere else
    (_S.PAUSED, _S.QUEUED): _OWNER,
    (_S.PAUSED, _S.RUNNING): _OWNER,
    (_S.PAUSED, _S.SUCCEEDED): _WORKER,  # the pause came after the model was there
    (_S.PAUSED, _S.FAILED): _WORKER,  # it came after what failed
    (_S.VALIDATING, _S.CANCELLED): _OWNER,
    (_S.QUEUED, _S.CANCELLED): _OWNER,
    (_S.RUNNING, _S.CANCELLED): _OWNER,
    (_S.PAUSED, _S.CANCELLED): _OWNER,
}
ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
OPEN: Final = frozenset(JobState) - ENDED
WORKED_ON: Final = OPEN - {JobState.PAUSED}  # that workers take


def check(before: JobState, after: JobState, actor: Actor) -> None:
    """Raise :class:`NotAllowed` unless ``actor`` may take a job from ``before`` to ``after``."""
    if TRANSITIONS.get((before, after)) is not actor:
        raise NotAllowed(before)
