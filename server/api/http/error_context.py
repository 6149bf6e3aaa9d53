"""What a request knows of an exception: the parameter that is at fault, the model that can't be loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from manylora.adapters.errors import AdapterError, AdapterNotFound, SourceUnreachable
from manylora.server.errors import AdapterUnavailable, ServerError

logger = logging.getLogger(__name__)


class Blamed(ServerError):
    """An exception together with the request's parameter that is at fault.

    It is answered like its ``cause``, with ``param`` in the error. What raises the cause does not know which
    parameter its value came from; the route does.
    """

    def __init__(self, cause: Exception, param: str) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.param = param


@contextmanager
def blame(param: str, kind: type[Exception] | tuple[type[Exception], ...] = AdapterError) -> Iterator[None]:
    """Name ``param`` in the answers to exceptions of ``kind`` that the block raises.

    Raises:
        Blamed: in place of such an exception.
    """
    try:
        yield
    except kind as error:
        raise Blamed(error, param) from error


def unavailable(model: str, error: Exception) -> Exception:
    """The exception that tells a client why ``model`` can't be loaded, and what to do; logs it as well.

    Args:
        error: what reading the adapter's files raised.
    """
    if isinstance(error, AdapterNotFound):  # it was deleted meanwhile, which is an answer
        return error
    reason = "its files can't be read" if isinstance(error, OSError) else str(error)
    later = isinstance(error, SourceUnreachable)
    remedy = "try again later" if later else "publish it again or roll it back to another revision"
    logger.error("%s can't be loaded: %s", model, error)
    return AdapterUnavailable(
        f"'{model}' can't be loaded: {reason}; {remedy}", public=f"'{model}' can't be loaded; {remedy}"
    )
