"""Rows of the table of fields: the routes that read texts and write none."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import Field, Place
from manylora.server.api.request.fields.rows import hint, only, refused, served

_EMBED = (Place.EMBEDDINGS,)
_RERANK = (Place.RERANK,)
_SCORE = (Place.SCORE,)
_ALL = (*_EMBED, *_RERANK, *_SCORE)

READING: Final[tuple[Field, ...]] = (
    served("model", "OVS", _ALL),
    served("adapters", "M", _ALL),
    served("add_special_tokens", "V", _ALL),
    served("allow_special_tokens", "M", _ALL),
    served("cache_salt", "V", _ALL),
    served("user", "OVS", _ALL),
    served("truncate_prompt_tokens", "V", _ALL),
    served("truncation_side", "V", _ALL),
    served("pooling", "M", _ALL),
    served("normalize", "VM", _ALL, note="cosines are of directions: of `/v1/embeddings` alone it shows"),
    served("input", "OVS", _EMBED),
    served("encoding_format", "OVS", _EMBED),
    served("dimensions", "OVS", _EMBED),
    only("embed_dtype", "V", "float32", places=_EMBED),
    only("endianness", "V", "native", "little", places=_EMBED),
    refused("messages", "V", _EMBED, note="`input` takes what the chat template would write"),
    served("query", "VS", (*_RERANK, *_SCORE)),
    served("documents", "V", _RERANK),
    served("top_n", "V", _RERANK),
    served("return_documents", "S", _RERANK),
    refused("instruct", "S", _RERANK),
    only("max_tokens_per_doc", "V", 0, places=_RERANK, note="`truncate_prompt_tokens` cuts documents"),
    served("items", "S", _SCORE),
    served("label_token_ids", "S", _SCORE),
    served("apply_softmax", "S", _SCORE),
    served("item_first", "S", _SCORE),
    served("text_1", "V", _SCORE),
    served("text_2", "V", _SCORE),
    refused("queries", "V", _SCORE, note="`text_1` is its name here"),
    refused("documents", "V", _SCORE, note="`text_2` is its name here"),
    only("use_activation", "V", True, places=(*_RERANK, *_SCORE)),
    refused("chat_template", "V", _ALL),
    only("chat_template_kwargs", "V", {}, places=_ALL),
    only("mm_processor_kwargs", "V", {}, places=_ALL),
    only("padding", "V", "do_not_pad", places=_ALL),
    only("priority", "V", 0, places=_ALL),
    refused("request_id", "V", _ALL),
    hint("rid", "S", _ALL, note="the client's own"),
)
