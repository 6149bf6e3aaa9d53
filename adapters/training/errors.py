"""Everything that can stop a training run, as one tree under :class:`manylora.adapters.errors.AdapterError`.

TrainingError
├── TrainingConfigError  an option is unknown, out of range or does not go with another one
├── DataError            the data files can't be trained on; carries every fault with file and line
├── RunExists            the output directory holds another run
├── CheckpointError      there is nothing to resume, or it belongs to another run
├── Interrupted          stopped by a signal after writing a checkpoint
├── GateFailed           the finished adapter would not serve as it was trained; nothing was published
└── PublishError         the server refused the adapter
"""

from __future__ import annotations

from manylora.adapters.errors import AdapterError


class TrainingError(AdapterError):
    """Base of every training error. ``str()`` is a sentence (or one a line) for the caller."""


class TrainingConfigError(TrainingError):
    """The configuration can't be used; one line for every fault."""


class DataError(TrainingError):
    """The data can't be trained on; one line for every fault, ``file:line: what to do``."""


class RunExists(TrainingError):
    """The output directory holds a run that was neither to be resumed nor overwritten."""


class CheckpointError(TrainingError):
    """There is no complete checkpoint, or it was written with another configuration or other data."""


class Interrupted(TrainingError):
    """A signal ended the run; a checkpoint was written first."""


class GateFailed(TrainingError):
    """The adapter read back from disk is not what was trained, or does not end its turns."""


class PublishError(TrainingError):
    """The server that the adapter was sent to could not be reached or did not take it."""
