"""The table of fields is complete, agrees with the schemas and the documentation, and decides alone."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import (
    EasyInputMessageParam,
    FunctionToolParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseFunctionToolCallParam,
    ResponseInputTextParam,
    ResponseOutputMessageParam,
    ResponseOutputTextParam,
    ResponseReasoningItemParam,
    ResponseTextConfigParam,
    response_create_params,
)
from openai.types.responses.response_input_item_param import FunctionCallOutput, ItemReference
from openai.types.shared_params import FunctionDefinition, Reasoning
from openai.types.shared_params.response_format_json_schema import JSONSchema, ResponseFormatJSONSchema

from manylora.server.api.admin.lora import LoadBody, UnloadBody
from manylora.server.api.compare.body import CompareBody
from manylora.server.api.embed.embeddings import EmbeddingsBody
from manylora.server.api.embed.rerank import RerankBody
from manylora.server.api.embed.score import ScoreBody
from manylora.server.api.generate.classify import ClassifyBody
from manylora.server.api.generate.tokenize import DetokenizeBody, TokenizeBody
from manylora.server.api.http.body import RequestBody
from manylora.server.api.messages.schemas import (
    ClientTool,
    CountTokensBody,
    MessagesBody,
    Metadata,
    OutputConfig,
    OutputFormat,
    Thinking,
    ToolChoice,
)
from manylora.server.api.request.fields.field import APIS, Field, Place, Sort
from manylora.server.api.request.fields.reference import tables
from manylora.server.api.request.fields.table import FIELDS, rules_of
from manylora.server.api.request.schemas import ChatBody, CompletionBody, Message, StreamOptions, TextPart
from manylora.server.api.request.structured_output import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from manylora.server.api.request.tool_calls import ToolCall
from manylora.server.api.request.tools import Function, Tool
from manylora.server.api.responses.schemas import FunctionTool, ResponsesBody, Text, TextFormat
from manylora.server.api.responses.schemas import Reasoning as ReasoningField
from manylora.server.errors import RequestError
from tests.support.fields_section import SECTION
from tests.support.fuzzing import FUZZ, json_values

SCHEMAS: dict[Place, type[RequestBody]] = {
    Place.CHAT: ChatBody,
    Place.COMPLETIONS: CompletionBody,
    Place.CLASSIFY: ClassifyBody,
    Place.EMBEDDINGS: EmbeddingsBody,
    Place.RERANK: RerankBody,
    Place.SCORE: ScoreBody,
    Place.COMPARE: CompareBody,
    Place.TOKENIZE: TokenizeBody,
    Place.DETOKENIZE: DetokenizeBody,
    Place.LOAD: LoadBody,
    Place.UNLOAD: UnloadBody,
    Place.MESSAGE: Message,
    Place.PART: TextPart,
    Place.TOOL_CALL: ToolCall,
    Place.STREAM_OPTIONS: StreamOptions,
    Place.TOOL: Tool,
    Place.FUNCTION: Function,
    Place.RESPONSE_FORMAT: ResponseFormat,
    Place.JSON_SCHEMA: JsonSchemaFormat,
    Place.STRUCTURED_OUTPUTS: StructuredOutputs,
    Place.RESPONSES: ResponsesBody,
    Place.ITEM_TOOL: FunctionTool,
    Place.REASONING: ReasoningField,
    Place.TEXT: Text,
    Place.TEXT_FORMAT: TextFormat,
    Place.MESSAGES: MessagesBody,
    Place.COUNT_TOKENS: CountTokensBody,
    Place.MESSAGES_TOOL: ClientTool,
    Place.MESSAGES_CHOICE: ToolChoice,
    Place.MESSAGES_METADATA: Metadata,
    Place.THINKING: Thinking,
    Place.OUTPUT_CONFIG: OutputConfig,
    Place.OUTPUT_FORMAT: OutputFormat,
}
HAND_READ: dict[Place, set[str]] = {  # items have many shapes under one name, and no model
    Place.ITEM_MESSAGE: {"type", "id", "role", "content"},
    Place.ITEM_PART: {"type", "text"},
    Place.ITEM_CALL: {"type", "id", "call_id", "name", "arguments"},
    Place.ITEM_OUTPUT: {"type", "id", "call_id", "output"},
    Place.ITEM_REASONING: {"type", "id", "summary", "content"},
    Place.ITEM_REFERENCE: {"type", "id"},
    Place.TURN: {"role", "content"},
    Place.BLOCK_TEXT: {"type", "text"},
    Place.BLOCK_TOOL_USE: {"type", "id", "name", "input"},
    Place.BLOCK_TOOL_RESULT: {"type", "tool_use_id", "content", "is_error"},
    Place.BLOCK_THINKING: {"type", "thinking"},
    Place.BLOCK_REDACTED: {"type"},
}
OPENAI: list[tuple[Place, Any]] = [
    (Place.CHAT, chat_create_params.CompletionCreateParamsNonStreaming),
    (Place.CHAT, chat_create_params.CompletionCreateParamsStreaming),
    (Place.COMPLETIONS, completion_create_params.CompletionCreateParamsNonStreaming),
    (Place.COMPLETIONS, completion_create_params.CompletionCreateParamsStreaming),
    (Place.EMBEDDINGS, embedding_create_params.EmbeddingCreateParams),
    (Place.STREAM_OPTIONS, ChatCompletionStreamOptionsParam),
    (Place.MESSAGE, ChatCompletionAssistantMessageParam),
    (Place.MESSAGE, ChatCompletionDeveloperMessageParam),
    (Place.MESSAGE, ChatCompletionSystemMessageParam),
    (Place.MESSAGE, ChatCompletionToolMessageParam),
    (Place.MESSAGE, ChatCompletionUserMessageParam),
    (Place.PART, ChatCompletionContentPartTextParam),
    (Place.TOOL_CALL, ChatCompletionMessageFunctionToolCallParam),
    (Place.TOOL, ChatCompletionFunctionToolParam),
    (Place.FUNCTION, FunctionDefinition),
    (Place.RESPONSE_FORMAT, ResponseFormatJSONSchema),
    (Place.JSON_SCHEMA, JSONSchema),
    (Place.RESPONSES, response_create_params.ResponseCreateParamsNonStreaming),
    (Place.RESPONSES, response_create_params.ResponseCreateParamsStreaming),
    (Place.ITEM_MESSAGE, EasyInputMessageParam),
    (Place.ITEM_MESSAGE, ResponseOutputMessageParam),
    (Place.ITEM_PART, ResponseInputTextParam),
    (Place.ITEM_PART, ResponseOutputTextParam),
    (Place.ITEM_CALL, ResponseFunctionToolCallParam),
    (Place.ITEM_OUTPUT, FunctionCallOutput),
    (Place.ITEM_REASONING, ResponseReasoningItemParam),
    (Place.ITEM_REFERENCE, ItemReference),
    (Place.ITEM_TOOL, FunctionToolParam),
    (Place.REASONING, Reasoning),
    (Place.TEXT, ResponseTextConfigParam),
    (Place.TEXT_FORMAT, ResponseFormatTextJSONSchemaConfigParam),
]
# The fields of anthropic 2.14.0's parameters, of its beta's, and of older versions.
_COUNTED = (
    "billing_policy cache_control compaction context_management mcp_servers messages model output_config "
    "speed system thinking tool_choice tools user_profile_id workspace_id"
)
_CREATED = (
    "container diagnostics fallback_credit_token fallbacks inference_geo max_tokens metadata output_format "
    "service_tier stop_sequences stream temperature thread top_k top_p"
)
ANTHROPIC: dict[Place, str] = {
    Place.COUNT_TOKENS: _COUNTED,
    Place.MESSAGES: f"{_COUNTED} {_CREATED}",
    Place.TURN: "role content",
    Place.BLOCK_TEXT: "type text cache_control citations",
    Place.BLOCK_TOOL_USE: "type id name input cache_control caller toolset_name",
    Place.BLOCK_TOOL_RESULT: "type tool_use_id content is_error cache_control toolset_name",
    Place.BLOCK_THINKING: "type thinking signature",
    Place.BLOCK_REDACTED: "type data",
    Place.MESSAGES_TOOL: "type name description input_schema strict cache_control allowed_callers "
    "defer_loading eager_input_streaming input_examples",
    Place.MESSAGES_CHOICE: "type name disable_parallel_tool_use",
    Place.MESSAGES_METADATA: "user_id",
    Place.THINKING: "type budget_tokens display",
    Place.OUTPUT_CONFIG: "effort format task_budget",
    Place.OUTPUT_FORMAT: "type schema",
}


@pytest.mark.parametrize("place", ANTHROPIC)
def test_every_field_of_anthropics_client_has_a_row(place: Place) -> None:
    known = {name for name, row in rules_of(place).fields.items() if "N" in row.known_to}
    assert known == set(ANTHROPIC[place].split())


@pytest.mark.parametrize(("place", "params"), OPENAI, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_of_the_official_client_has_a_row(place: Place, params: Any) -> None:
    rows = rules_of(place).fields
    missing = get_type_hints(params).keys() - rows.keys()
    assert not missing
    assert all("O" in rows[name].known_to for name in get_type_hints(params))


def test_no_field_has_two_rows_in_one_place() -> None:
    counts = Counter((row.name, place) for row in FIELDS for place in row.places)
    assert [key for key, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("place", Place)
def test_what_does_what_it_says_is_in_the_schema_and_nothing_else(place: Place) -> None:
    served = {name for name, row in rules_of(place).fields.items() if row.sort is Sort.SERVED}
    if place in HAND_READ:
        assert served == HAND_READ[place]
        return
    assert served == {field.alias or name for name, field in SCHEMAS[place].model_fields.items()}


@pytest.mark.parametrize("row", FIELDS, ids=lambda row: row.name)
def test_rows_are_well_formed(row: Field) -> None:
    assert row.places
    assert set(row.known_to) <= set(APIS)
    assert bool(row.taken) == (row.sort is Sort.DEFAULT) or row.sort is Sort.SERVED


def test_the_documentation_prints_the_table() -> None:
    assert SECTION.text() == tables(), "run: make docs"


ROWS = [(row, place) for row in FIELDS for place in row.places]


@FUZZ
@given(st.sampled_from(ROWS), json_values)
def test_a_row_alone_decides(chosen: tuple[Field, Place], value: Any) -> None:
    """Whatever the value: it is read by the schema, left out, or refused by its name."""
    row, place = chosen
    result = sifted(place, {row.name: value, "unknown": 1})
    if isinstance(result, RequestError):
        assert (result.param, result.code) == (f"where.{row.name}", "unsupported_parameter")
        assert row.sort in {Sort.DEFAULT, Sort.REFUSED}
        assert value is not None
        assert value not in row.taken or isinstance(value, bool)
    else:
        assert result in ({row.name: value, "unknown": 1}, {"unknown": 1})
        assert row.sort is not Sort.REFUSED or value is None
        assert (row.name in result) <= (row.sort is Sort.SERVED)


def sifted(place: Place, values: dict[str, Any]) -> dict[str, Any] | RequestError:
    """What the rules of ``place`` leave of ``values``, or their refusal."""
    try:
        return rules_of(place).sift(values, "where.")
    except RequestError as refusal:
        return refusal


@pytest.mark.parametrize(("row", "place"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_null_and_the_values_that_ask_for_nothing_are_left_out(row: Field, place: Place) -> None:
    rules = rules_of(place)
    for value in row.taken:
        assert rules.sift({row.name: value}) == {}
    if row.sort is not Sort.SERVED:
        assert rules.sift({row.name: None}) == {}


@pytest.mark.parametrize("value", [False, "0", [0], 0.5])
def test_numbers_are_numbers_only(value: Any) -> None:
    rules = rules_of(Place.CHAT)
    assert rules.sift({"mirostat": 0, "typical_p": 1.0, "repeat_penalty": 1}) == {}
    with pytest.raises(RequestError):
        rules.sift({"mirostat": value})
