"""Which mix a request asks for, read from its model string or its list of adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from manylora.adapters.errors import AdapterNameError
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.server.api.request.mix_entries import terms_of
from manylora.server.api.request.schemas import AdapterWeight
from manylora.server.errors import ModelNotFound, RequestError
from manylora.server.service import Service

ENTRIES = "adapters"  # the parameter that lists a mix's entries


@dataclass(frozen=True, slots=True)
class MixRequest:
    """What a request asks to run with, and the parameter that says so."""

    terms: tuple[MixTerm, ...]  # empty for the base model
    param: str = "model"
    user: str | None = None  # who gets always the same arm of an alias
    counted: bool = True  # for the arm
    as_asked: bool = False  # no automatically merged copy in its place


def read_mix(
    service: Service, model: str, adapters: Sequence[AdapterWeight] | None = None, user: str | None = None
) -> MixRequest:
    """Read the model string, or ``adapters`` beside the base model.

    Raises:
        ModelNotFound: ``model`` is not a name that could exist.
        RequestError, MixError, AdapterNameError: malformed; answered with the right ``param``.
    """
    if adapters:
        if model != service.model_name:
            raise RequestError(
                f"'adapters' goes with the base model: 'model' must be '{service.model_name}'", ENTRIES
            )
        return MixRequest(terms_of(adapters, ENTRIES), ENTRIES, user)
    if model == service.model_name:
        return MixRequest(())
    try:
        return MixRequest(parse_mix(model), user=user)
    except AdapterNameError:
        if set(model) & set("+*@"):
            raise
        raise ModelNotFound(f"The model '{model[:200]}' does not exist") from None


def salt_of(cache_salt: str | None) -> bytes:
    """The root that a client keeps its cached prompts apart by; b"" is shared by all who give none."""
    return b"" if cache_salt is None else hashlib.blake2b(cache_salt.encode(), digest_size=16).digest()


def tenant_salt(tenant: str, salt: bytes) -> bytes:
    """The root of a tenant's prompts, given its id and what the client's own salt comes to."""
    return hashlib.blake2b(salt, key=tenant.encode(), digest_size=16).digest()
