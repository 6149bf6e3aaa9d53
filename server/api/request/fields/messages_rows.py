"""Rows of the table of fields: Anthropic's Messages API, its blocks and what else its bodies hold."""

from __future__ import annotations

from typing import Final

from manylora.server.api.request.fields.field import Field, Place
from manylora.server.api.request.fields.rows import hint, only, refused, served

_BODY = (Place.MESSAGES,)
_BOTH = (Place.MESSAGES, Place.COUNT_TOKENS)
_TURN = (Place.TURN,)
_TEXT = (Place.BLOCK_TEXT,)
_CALL = (Place.BLOCK_TOOL_USE,)
_RESULT = (Place.BLOCK_TOOL_RESULT,)
_THOUGHT = (Place.BLOCK_THINKING,)
_REDACTED = (Place.BLOCK_REDACTED,)
_BLOCKS = (*_TEXT, *_CALL, *_RESULT, *_THOUGHT, *_REDACTED)
_TOOL = (Place.MESSAGES_TOOL,)
_CHOICE = (Place.MESSAGES_CHOICE,)
_METADATA = (Place.MESSAGES_METADATA,)
_THINKING = (Place.THINKING,)
_OUTPUT = (Place.OUTPUT_CONFIG,)
_FORMAT = (Place.OUTPUT_FORMAT,)

_KEEP_ALL = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}

MESSAGES: Final[tuple[Field, ...]] = (
    served("messages", "N", _BOTH, note="turns of text, `tool_use`, `tool_result`, `thinking`"),
    served("system", "N", _BOTH, "", [], note="a text, or blocks of text"),
    served("tools", "N", _BOTH, [], note="tools that the client runs"),
    served("tool_choice", "N", _BOTH),
    served("thinking", "N", _BOTH, note="`enabled`, `disabled`, `adaptive`"),
    served("output_config", "N", _BOTH, {}, note="`format` and `effort`"),
    served("max_tokens", "N", _BODY, note="less if the context has no room for as many"),
    served("stop_sequences", "N", _BODY, [], note="empty strings stop nothing"),
    served("metadata", "N", _BODY, {}, note="`user_id`: who gets which arm of an alias"),
    hint("cache_control", "N", _BOTH, note="prompts are cached anyway"),
    hint("service_tier", "N", _BODY),
    hint("user_profile_id", "N", _BOTH, note="`metadata.user_id` says who asks"),
    hint("workspace_id", "N", _BOTH, note="who pays"),
    hint("diagnostics", "N", _BODY, note="`usage` tells what came from the cache"),
    hint("billing_policy", "N", _BOTH, note="who pays"),
    hint("fallback_credit_token", "N", _BODY, note="who pays"),
    only("speed", "N", "standard", places=_BOTH),
    only("context_management", "N", {}, {"edits": []}, _KEEP_ALL, places=_BOTH, note="nothing is cut off"),
    only("mcp_servers", "N", [], places=_BOTH, note="tools are the client's to run"),
    only("fallbacks", "N", [], places=_BODY),
    refused("compaction", "N", _BOTH),
    refused("container", "N", _BODY, note="nothing is run here"),
    refused("inference_geo", "N", _BODY, note="the server is where it is"),
    refused("output_format", "N", _BODY, note="`output_config.format` is its newer name"),
    refused("thread", "N", _BODY),
    served("role", "N", _TURN, note="`user`, `assistant`, `system`"),
    served("content", "N", _TURN, note="a text, or blocks"),
    served("type", "N", _BLOCKS),
    served("text", "N", _TEXT),
    hint("cache_control", "N", (*_TEXT, *_CALL, *_RESULT), note="a mark for caches"),
    hint("citations", "N", _TEXT, note="what answers carry beside their text"),
    served("id", "N", _CALL),
    served("name", "N", _CALL),
    served("input", "N", _CALL),
    hint("caller", "N", _CALL),
    hint("toolset_name", "N", (*_CALL, *_RESULT), note="`name` says which tool"),
    served("tool_use_id", "N", _RESULT),
    served("content", "N", _RESULT, note="a text, or blocks of text"),
    served("is_error", "N", _RESULT, False, note="true: the model reads `Error: ` before the content"),
    served("thinking", "N", _THOUGHT, note="written if the chat template has a place for it"),
    hint("signature", "N", _THOUGHT, note="it is not checked"),
    hint("data", "N", _REDACTED, note="nobody here can read it: the block is left out"),
    served("type", "N", _TOOL, "custom", note="`custom`"),
    served("name", "N", _TOOL),
    served("description", "N", _TOOL),
    served("input_schema", "N", _TOOL, note="JSON Schema"),
    served("strict", "N", _TOOL, note="calls are held to `input_schema`"),
    hint("cache_control", "N", _TOOL, note="a mark for caches"),
    hint("eager_input_streaming", "N", _TOOL, note="calls are streamed as they come"),
    only("allowed_callers", "N", ["direct"], places=_TOOL, note="nothing else calls them"),
    only("defer_loading", "N", False, places=_TOOL),
    only("input_examples", "N", [], places=_TOOL, note="the description has a place for them"),
    served("type", "N", _CHOICE, note="`auto`, `any`, `tool`, `none`"),
    served("name", "N", _CHOICE, note="of the type `tool`"),
    served("disable_parallel_tool_use", "N", _CHOICE, False, note="true: at most one call"),
    served("user_id", "N", _METADATA),
    served("type", "N", _THINKING, note="`adaptive`: as the model does without being told"),
    served("budget_tokens", "N", _THINKING, note="tokens after which reasoning is closed"),
    served("display", "N", _THINKING, "summarized", note="`omitted`: answers leave their reasoning out"),
    served("format", "N", _OUTPUT, note="JSON by a schema"),
    served("effort", "N", _OUTPUT, note="a variable of the chat template"),
    refused("task_budget", "N", _OUTPUT),
    served("type", "N", _FORMAT, note="`json_schema`"),
    served("schema", "N", _FORMAT),
)
