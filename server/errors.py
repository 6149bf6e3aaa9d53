"""Everything that can go wrong in serving, as one tree. The API maps each to a status in one table.

ServerError
├── ModelRefused        the base model can't be loaded or can't be served correctly
├── RequestError        the request is invalid; names the parameter
│   └── ContextTooLong  prompt and answer do not fit the context window
├── BodyTooLarge        the request's body exceeds its bound
├── UnknownEncoding     the request's body is packed in a way that can't be read here
├── RequestTimeout      the request did not arrive in time
├── TooManyConnections  no connection is left for the request
├── Unauthorized        no API key, or an unknown one
├── AdminKeyNeeded      a key that may not manage adapters
├── ModelNotFound       the model string names nothing that is registered
├── AnswerUnknown       no such answer can be scored
├── ObjectNotFound      nothing that a client keeps here has that id
├── ObjectInUse         it can't be changed in the state that it is in
├── QueueFull           too many requests are waiting; says when to retry
│   └── RateLimited         the caller's tenant has taken all that it may for now
├── AdapterUnavailable  a registered adapter's files are gone or damaged
├── EngineDead          the engine thread has stopped
├── ServerStopping      the server ends before the answer is complete
├── GenerationFailed    an answer ended by a fault of the server
├── CopyFailed          a merged copy could not be built
├── ExportFailed        a standalone model could not be written
├── Cancelled           somebody has ended what this request waited for
└── ConfigError         the server's own configuration is invalid
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of every serving error. ``str()`` is a sentence for the caller."""


class ModelRefused(ServerError):
    """The base model can't be loaded, or the decoders disagree with the original model."""


class ConfigError(ServerError):
    """The configuration is invalid; the message names the option."""


class RequestError(ServerError):
    """The request is invalid. ``param`` is the name of the offending field, if one is."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextTooLong(RequestError):
    """Prompt (and answer) exceed the context window."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param, "context_length_exceeded")


class BodyTooLarge(ServerError):
    """The request's body exceeds the bound."""


class ObjectNotFound(ServerError):
    """Nothing that a client keeps on the server has that id. ``param`` names where the id stood."""

    def __init__(self, message: str, param: str = "id") -> None:
        super().__init__(message)
        self.param = param


class ObjectInUse(ServerError):
    """What a client keeps on the server can't be changed in the state that it is in."""


class UnknownEncoding(ServerError):
    """The body is packed in a way that can't be unpacked; ``accepted`` lists those that can."""

    def __init__(self, message: str, accepted: str) -> None:
        super().__init__(message)
        self.accepted = accepted


class RequestTimeout(ServerError):
    """The head or the body of a request did not arrive in time."""


class TooManyConnections(ServerError):
    """As many connections are open as may be, in all or from the client's address."""


class Unauthorized(ServerError):
    """No API key, or one that is not among the configured."""


class AdminKeyNeeded(ServerError):
    """The key is one of those that may ask for answers, but not manage adapters."""


class ModelNotFound(ServerError):
    """The model string names neither the base model nor a registered adapter."""


class AnswerUnknown(ServerError):
    """The id is of no answer that this server remembers."""


class QueueFull(ServerError):
    """The bound on waiting requests is reached. ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(QueueFull):
    """The tenant has taken all that it may in a minute or a month, or at a time."""

    def __init__(self, message: str, retry_after: float, code: str | None = None) -> None:
        super().__init__(message, retry_after)
        self.code = code


class AdapterUnavailable(ServerError):
    """A registered adapter's files are gone or damaged, so that no request can run with it.

    ``public`` says so without the reason, which may name files of this machine.
    """

    def __init__(self, message: str, public: str) -> None:
        super().__init__(message)
        self.public = public


class EngineDead(ServerError):
    """The engine thread has stopped; nothing can be generated until the process restarts."""


class ServerStopping(ServerError):
    """The server has been told to stop, and the time that running requests get is over."""


class GenerationFailed(ServerError):
    """A sequence ended by a fault of the server, not by the request."""


class ExportFailed(ServerError):
    """A standalone model could not be written; the message says of what and why."""


class CopyFailed(ServerError):
    """A merged copy could not be built; the message says of what and why."""


class Cancelled(ServerError):
    """Somebody has ended what this request asked for and waited for: freed the copy, cancelled the export."""
