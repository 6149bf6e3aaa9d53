"""Options of an adapter that embeds texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.options.option import Option
from manylora.adapters.training.options.types import STEPS, Options


class EmbeddingOptions(Options):
    """How texts become vectors, and what is learned from them."""

    embed_pooling: Annotated[
        Literal["auto", "last", "mean"],
        Option(
            STEPS, "HOW", "Embeddings: last (the state of the last token), mean (of all), or auto: as the "
            "adapter that is gone on from does, else the base by its files, else last. The adapter keeps it.",
            "only the last token of a model that writes has seen the whole text",
        ),
    ] = "auto"  # fmt: skip
    embed_vectors: Annotated[
        Literal["auto", "unit", "raw"],
        Option(
            STEPS, "KIND", "Embeddings: whether the server gives vectors of length 1 (unit) or as they are "
            "(raw); auto as with embed_pooling, else unit. The loss is of cosines either way.",
            "the dot products of vectors of length 1 are their cosines",
        ),
    ] = "auto"  # fmt: skip
    embed_temperature: Annotated[
        float,
        Option(
            STEPS, "TEMPERATURE", "Embeddings: cosines are divided by it before the softmax over candidates.",
            "20 times the cosine, as sentence-transformers has it: lower values learn from the nearest "
            "candidates alone",
        ),
        Field(ge=1e-3, le=10),
    ] = 0.05  # fmt: skip
    embed_symmetric: Annotated[
        bool,
        Option(
            STEPS, "", "Embeddings: also find the query among the others for each positive.",
            "searching goes one way; worth it where both texts are of one kind", switch=True,
        ),
    ] = False  # fmt: skip
