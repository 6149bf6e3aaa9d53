"""How one request's texts become vectors: as it says, else as its adapters' files do, else the base's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from manylora.adapters.format.pooling import Pooling, PoolingConfig
from manylora.server.api.embed.body import PoolingBody
from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions

V = TypeVar("V")
Choose = Callable[[TextConventions], PoolingConfig]  # knows the mix by its conventions


def pooling_for(body: PoolingBody, base: PoolingConfig, *, cosines: bool = False) -> Choose:
    """What chooses for ``body``, on a base that pools as ``base`` says.

    Args:
        body: of the request.
        base: what its files say.
        cosines: only cosines are asked for, so that it makes no difference whether vectors are normalized.

    Returns:
        A function that raises RequestError where the members of a mix differ in what the request leaves open.
    """

    def choose(conventions: TextConventions) -> PoolingConfig:
        asked = None if body.pooling is None else Pooling(body.pooling.upper())
        own = conventions.poolings
        pooling = _agreed("pooling", asked, [(label, config.pooling) for label, config in own], base.pooling)
        normalize = True if cosines else body.normalize
        lengths = [(label, config.normalize) for label, config in own]
        return PoolingConfig(pooling, _agreed("normalize", normalize, lengths, base.normalize))

    return choose


def _agreed(param: str, asked: V | None, own: list[tuple[str, V]], base: V) -> V:
    """What is asked for, else what the members say, else the base.

    Raises:
        RequestError: they say different things.
    """
    if asked is not None:
        return asked
    if not own:
        return base
    other = next((label for label, value in own if value != own[0][1]), None)
    if other is not None:
        raise RequestError(
            f"{own[0][0]!r} and {other!r} embed in different ways: '{param}' must say which", param
        )
    return own[0][1]
