"""Rows of the table of fields: messages and what else bodies hold, and the bodies of other routes."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import Field, Place
from manylora.server.api.request.fields.rows import hint, only, refused, served

_MESSAGE = (Place.MESSAGE,)
_PART = (Place.PART,)
_CALL = (Place.TOOL_CALL,)
_TOOL = (Place.TOOL,)
_FUNCTION = (Place.FUNCTION,)
_STREAM = (Place.STREAM_OPTIONS,)
_FORMAT = (Place.RESPONSE_FORMAT,)
_SCHEMA = (Place.JSON_SCHEMA,)
_STRUCTURED = (Place.STRUCTURED_OUTPUTS,)
_CLASSIFY = (Place.CLASSIFY,)
_TOKENIZE = (Place.TOKENIZE,)
_COMPARE = (Place.COMPARE,)

NESTED: Final[tuple[Field, ...]] = (
    served("role", "OVSLA", _MESSAGE),
    served("content", "OVSLA", _MESSAGE, note="null and left out beside `tool_calls`"),
    served("name", "OVSA", _MESSAGE, "", note="written if the chat template has a place for it"),
    served("tool_calls", "OVSLA", _MESSAGE, [], note="written if the chat template has a place for them"),
    served("tool_call_id", "OVSLA", _MESSAGE, note="of the role `tool`"),
    served("reasoning_content", "VSL", _MESSAGE, "", note="written if the chat template has a place for it"),
    hint("annotations", "O", _MESSAGE, note="what answers carry beside their text"),
    refused("audio", "O", _MESSAGE),
    hint("cache_control", "O", _MESSAGE, note="a mark for caches"),
    refused("function_call", "O", _MESSAGE),
    hint("id", "O", _MESSAGE, note="the client's own"),
    only("prefix", "S", False, places=_MESSAGE, note="`continue_final_message` continues a message"),
    served("reasoning", "VA", _MESSAGE, "", note="another name of `reasoning_content`"),
    only("refusal", "O", "", places=_MESSAGE),
    only("tools", "S", [], places=_MESSAGE),
    hint("weight", "O", _MESSAGE, note="it belongs to training"),
    served("type", "OVSL", _PART),
    served("text", "OVSL", _PART),
    only("annotations", "O", [], places=_PART),
    hint("cache_control", "O", _PART, note="a mark for caches"),
    hint("id", "O", _PART, note="the client's own"),
    hint("prompt_cache_breakpoint", "O", _PART, note="a mark for caches"),
    served("id", "OVSLA", _CALL),
    served("type", "OVSLA", _CALL),
    served("function", "OVSLA", _CALL),
    hint("cache_control", "O", _CALL, note="a mark for caches"),
    hint("index", "OVSA", _CALL, note="where it stood in a stream"),
    served("type", "OVSLA", _TOOL, note="`function`"),
    served("function", "OVSLA", _TOOL),
    hint("cache_control", "O", _TOOL, note="a mark for caches"),
    served("name", "OVSLA", _FUNCTION),
    served("description", "OVSLA", _FUNCTION),
    served("parameters", "OVSLA", _FUNCTION, note="JSON Schema"),
    served("strict", "OVSL", _FUNCTION, note="calls are held to `parameters`"),
    served("include_usage", "OVSLA", _STREAM),
    served("continuous_usage_stats", "V", _STREAM, note="with `include_usage`"),
    only("include_obfuscation", "O", False, places=_STREAM),
    served("type", "OVSL", _FORMAT, note="`text`, `json_object`, `json_schema`"),
    served("json_schema", "OVSL", _FORMAT),
    served("schema", "SL", _FORMAT, note="the schema without what stands around it"),
    served("schema", "OVSL", _SCHEMA, note="left out: any object"),
    served(
        "strict", "OVS", _SCHEMA, note="false: keywords that can't be kept are left out and named in a header"
    ),
    hint("name", "OVSL", _SCHEMA),
    hint("description", "OVS", _SCHEMA),
    served("json", "V", _STRUCTURED),
    served("regex", "V", _STRUCTURED),
    served("choice", "V", _STRUCTURED),
    served("grammar", "V", _STRUCTURED, note="Lark or GBNF"),
    served("json_object", "V", _STRUCTURED, False),
    served("disable_any_whitespace", "V", _STRUCTURED, False),
    served("disable_additional_properties", "V", _STRUCTURED, False),
    served("whitespace_pattern", "V", _STRUCTURED),
    hint("disable_fallback", "V", _STRUCTURED, note="there is one engine"),
    refused("structural_tag", "V", _STRUCTURED, note="a Lark grammar says the same"),
)

ROUTES: Final[tuple[Field, ...]] = (
    served("model", "VS", (Place.CLASSIFY, Place.TOKENIZE, Place.DETOKENIZE)),
    served("input", "VS", _CLASSIFY),
    served("adapters", "M", _CLASSIFY),
    served("truncate_prompt_tokens", "V", _CLASSIFY),
    served("truncation_side", "V", _CLASSIFY),
    served("use_activation", "V", _CLASSIFY),
    refused("chat_template", "V", (Place.CLASSIFY, Place.TOKENIZE)),
    only("chat_template_kwargs", "V", {}, places=(Place.CLASSIFY, Place.TOKENIZE)),
    only("continue_final_message", "V", False, places=_CLASSIFY),
    only("media_io_kwargs", "V", {}, places=(Place.CLASSIFY, Place.TOKENIZE)),
    only("mm_processor_kwargs", "V", {}, places=(Place.CLASSIFY, Place.TOKENIZE)),
    only("padding", "V", "do_not_pad", places=_CLASSIFY),
    only("priority", "V", 0, places=_CLASSIFY),
    refused("request_id", "V", _CLASSIFY),
    served("return_token_strs", "V", _TOKENIZE),
    served("tokens", "VS", (Place.DETOKENIZE,)),
    served("targets", "M", _COMPARE),
    served("conversations", "M", _COMPARE),
    served("reference", "M", _COMPARE),
    served("one_by_one", "M", _COMPARE),
    refused("logprobs", "O", _COMPARE),
    refused("model", "O", _COMPARE, note="`targets` names the models"),
    only("n", "O", 1, places=_COMPARE),
    refused("stream_options", "O", _COMPARE),
    served("lora_name", "V", (Place.LOAD, Place.UNLOAD)),
    served("lora_path", "V", (Place.LOAD,)),
    served("load_inplace", "V", (Place.LOAD,)),
    served("registry_scope", "M", (Place.LOAD, Place.UNLOAD)),
    refused("base_model_name", "V", (Place.LOAD,)),
    only("is_3d_lora_weight", "V", False, places=(Place.LOAD,)),
    refused("lora_int_id", "V", (Place.LOAD, Place.UNLOAD)),
)
