"""Rows of the table of fields: the Responses API, its items and what else its bodies hold."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import Field, Place
from manylora.server.api.request.fields.rows import hint, only, refused, served

_BODY = (Place.RESPONSES,)
_MESSAGE = (Place.ITEM_MESSAGE,)
_PART = (Place.ITEM_PART,)
_CALL = (Place.ITEM_CALL,)
_OUTPUT = (Place.ITEM_OUTPUT,)
_THOUGHT = (Place.ITEM_REASONING,)
_REFERENCE = (Place.ITEM_REFERENCE,)
_ITEMS = (*_MESSAGE, *_CALL, *_OUTPUT, *_THOUGHT)
_TOOL = (Place.ITEM_TOOL,)
_REASONING = (Place.REASONING,)
_TEXT = (Place.TEXT,)
_FORMAT = (Place.TEXT_FORMAT,)

RESPONSES: Final[tuple[Field, ...]] = (
    served("input", "OVS", _BODY, note="a text, or items"),
    served("instructions", "OVS", _BODY, note="stand before the input; not carried over"),
    served("previous_response_id", "OVS", _BODY, note="a response that was stored"),
    served("store", "OVS", _BODY, note="false: nothing is kept"),
    served("background", "OV", _BODY, False, note="answered while the client is away; with `store`"),
    served("max_output_tokens", "OVS", _BODY),
    served("truncation", "OV", _BODY, "disabled", note="`auto`: the oldest items go if all don't fit"),
    served("text", "OVS", _BODY, {}, {"format": {"type": "text"}}, note="`format` and `verbosity`"),
    served("reasoning", "OVS", _BODY, {}, note="`effort`: a variable of the chat template"),
    served("tools", "OVS", _BODY, [], note="functions"),
    served("tool_choice", "OVS", _BODY, "auto"),
    served("parallel_tool_calls", "OVS", _BODY, True),
    served("top_logprobs", "OVS", _BODY, 0),
    served("include", "OV", _BODY, [], note="`message.output_text.logprobs`"),
    served("metadata", "OV", _BODY, {}, note="the answer carries it"),
    hint("max_tool_calls", "OVS", _BODY, note="it bounds tools that a server runs itself"),
    hint("prompt_cache_key", "O", _BODY, note="`cache_salt` keeps tenants apart"),
    hint("prompt_cache_options", "O", _BODY),
    hint("prompt_cache_retention", "O", _BODY),
    hint("service_tier", "OVS", _BODY),
    hint("stream_options", "O", _BODY, note="padding of events"),
    refused("access_programs", "O", _BODY),
    refused("background_options", "O", _BODY),
    refused("context_management", "O", _BODY),
    refused("conversation", "O", _BODY, note="`previous_response_id` goes on with a conversation"),
    hint("image", "O", _BODY, note="there are no images"),
    refused("moderation", "O", _BODY),
    refused("prompt", "OV", _BODY, note="there are no stored prompts"),
    served("type", "OV", (*_ITEMS, *_REFERENCE)),
    served("id", "OV", _ITEMS),
    served("id", "O", _REFERENCE, note="of an item of a response that was stored"),
    hint("status", "OV", _ITEMS),
    served("role", "OV", _MESSAGE),
    served("content", "OV", _MESSAGE),
    hint("phase", "O", _MESSAGE, note="what an answer says of itself"),
    served("call_id", "OV", (*_CALL, *_OUTPUT)),
    served("name", "OV", _CALL),
    served("arguments", "OV", _CALL, note="JSON"),
    hint("async", "O", _CALL),
    hint("caller", "O", (*_CALL, *_OUTPUT)),
    hint("name", "O", _OUTPUT, note="`call_id` says which call"),
    hint("namespace", "O", (*_CALL, *_OUTPUT)),
    served("output", "OV", _OUTPUT, note="a text, or parts of text"),
    served("summary", "OV", _THOUGHT, note="read where there is no `content`"),
    served("content", "OV", _THOUGHT, [], note="written if the chat template has a place for it"),
    hint("encrypted_content", "OV", _THOUGHT, note="reasoning here is not encrypted"),
    served("type", "OV", _PART, note="`input_text`, `output_text`, `text`"),
    served("text", "OV", _PART),
    hint("annotations", "OV", _PART),
    hint("logprobs", "OV", _PART),
    hint("prompt_cache_breakpoint", "O", _PART, note="a mark for caches"),
    served("type", "OV", _TOOL, note="`function`"),
    served("name", "OV", _TOOL),
    served("description", "OV", _TOOL),
    served("parameters", "OV", _TOOL, note="JSON Schema"),
    served("strict", "OV", _TOOL, note="calls are held to `parameters`"),
    hint("allowed_callers", "O", _TOOL, note="nothing else calls them"),
    hint("async", "O", _TOOL, note="when the client answers is its own business"),
    only("defer_loading", "O", False, places=_TOOL),
    hint("output_schema", "O", _TOOL, note="what the function returns"),
    served("effort", "OV", _REASONING),
    hint("context", "O", _REASONING),
    hint("generate_summary", "O", _REASONING, note="all of the reasoning is there"),
    hint("mode", "O", _REASONING),
    hint("summary", "OV", _REASONING, note="all of the reasoning is there"),
    served("format", "OV", _TEXT, {"type": "text"}),
    served("verbosity", "O", _TEXT, note="a variable of the chat template"),
    served("type", "OV", _FORMAT, note="`text`, `json_object`, `json_schema`"),
    served("schema", "OV", _FORMAT),
    served("strict", "OV", _FORMAT, note="as in `response_format.json_schema`"),
    hint("name", "OV", _FORMAT),
    hint("description", "OV", _FORMAT),
)
