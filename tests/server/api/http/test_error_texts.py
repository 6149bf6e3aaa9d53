"""What error messages tell: everything to admins, to others nothing of where things are on the server."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from manylora.adapters import errors as adapter_errors
from manylora.adapters.errors import AdapterError, AdapterNotFound, ArtifactError, SourceMissing
from manylora.server import errors as server_errors
from manylora.server.api.access.scopes import ADMIN, INFER, OPEN, TENANT, KeyScope
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.error_context import Blamed, unavailable
from manylora.server.errors import AdapterUnavailable, ServerError

PLACE = "/srv/adapters/support/adapter_model.safetensors"

# Their messages are about what was asked: they are written from the request's own words. A new exception is
# either here, or has a text of its own for callers below the admin scope.
OF_THE_REQUEST = {
    "AdapterDeleted", "AdapterExists", "AdapterInUse", "AdapterNameError", "AdapterNotFound",
    "AdapterTooLarge", "AdminKeyNeeded", "AnswerUnknown", "BodyTooLarge", "Cancelled", "ContextTooLong",
    "EngineDead", "GenerationFailed", "MixError", "ModelNotFound", "ObjectInUse", "ObjectNotFound",
    "OverQuota", "QueueFull", "RateLimited", "RequestError", "RequestTimeout", "ServerStopping",
    "TenantExists",
    "TenantNotFound", "TooManyConnections", "Unauthorized", "UnknownEncoding",
}  # fmt: skip


def kinds() -> Iterator[type[Exception]]:
    """Every exception of the two trees."""
    for module, base in ((adapter_errors, AdapterError), (server_errors, ServerError)):
        for found in vars(module).values():
            if inspect.isclass(found) and issubclass(found, base):
                yield found


def raised(kind: type[Exception]) -> Exception:
    """An exception of ``kind`` whose text names a file."""
    text = f"{PLACE}: no such file"
    if kind is ArtifactError:
        return ArtifactError([text])
    if kind is AdapterUnavailable:
        return AdapterUnavailable(text, public="it can't be loaded")
    return kind(text)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.__name__ not in OF_THE_REQUEST])
@pytest.mark.parametrize("caller", [OPEN, TENANT, INFER])
def test_only_admins_are_told_of_files(kind: type[Exception], caller: KeyScope) -> None:
    error = raised(kind)
    for told in (error_answer(error, caller), error_answer(Blamed(error, "model"), caller)):
        assert "/srv" not in str(told.body)
        assert told.message
    admin = error_answer(error, ADMIN)
    assert PLACE in admin.message or admin.kind.status == 500


def test_an_adapter_that_can_not_be_loaded() -> None:
    error = unavailable("support@3f9a1c2e", SourceMissing(f"there is nothing at {PLACE}"))
    told = error_answer(error, INFER)
    assert told.message == (
        "'support@3f9a1c2e' can't be loaded; publish it again or roll it back to another revision"
    )
    assert PLACE in error_answer(error, ADMIN).message


def test_a_name_that_failed() -> None:
    error = AdapterNotFound(f"the adapter 'a' failed: {PLACE}", public="the adapter 'a' failed")
    assert error_answer(error, INFER).message == "the adapter 'a' failed"
    assert PLACE in error_answer(error, ADMIN).message
