"""The fields that say what an answer looks like: OpenAI's, and those of vLLM, SGLang and llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, StringConstraints, model_validator

from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.errors import RequestError
from manylora.server.grammars.grammar import CompiledGrammar
from manylora.server.grammars.spec import GrammarSpec, JsonStyle
from manylora.server.model.text.tokenizer import Tokenizer
from manylora.server.service import Service

GrammarText = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_GRAMMAR_LENGTH)]
Choices = Annotated[
    list[Annotated[str, StringConstraints(max_length=limits.MAX_CHOICE_LENGTH)]],
    Field(min_length=1, max_length=limits.MAX_CHOICES),
]
Schema = dict[str, Any] | bool
DEFAULT_STYLE: Final = JsonStyle()
SchemaOrText = dict[str, Any] | bool | GrammarText


class JsonSchemaFormat(RequestBody):
    """``response_format.json_schema``."""

    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = Field(
        None, description="false: keywords that answers can't be held to are left out instead of refused."
    )

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return _sifted(values, Place.JSON_SCHEMA)


class ResponseFormat(RequestBody):
    """``response_format``: JSON, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") == "structural_tag":
            raise RequestError(
                "'response_format.type': structural tags are not supported; 'structured_outputs.grammar' can "
                "describe text with parts that follow a schema",
                "response_format.type",
                "unsupported_parameter",
            )
        return _sifted(values, Place.RESPONSE_FORMAT)

    def spec(self) -> GrammarSpec | None:
        """The grammar that this asks for; None for any text.

        Raises:
            RequestError: fields of another type.
        """
        if self.json_schema is not None and self.type != "json_schema":
            raise RequestError(
                "'response_format.json_schema' goes with the type 'json_schema'",
                "response_format.json_schema",
            )
        if self.type == "text":
            return None
        if self.type == "json_object":
            return _of_schema(self.schema_, "response_format.schema")
        given = self.json_schema
        if given is None:
            if self.schema_ is None:
                raise RequestError("'response_format.json_schema' is required", "response_format.json_schema")
            return _of_schema(self.schema_, "response_format.schema")
        style = JsonStyle(lenient=given.strict is False)
        return _of_schema(given.schema_, "response_format.json_schema.schema", style)


class StructuredOutputs(RequestBody):
    """``structured_outputs``, as vLLM has it: one of the first five, and how JSON is written."""

    json_: SchemaOrText | None = Field(None, alias="json")
    regex: GrammarText | None = None
    choice: Annotated[Choices, bounded(limits.MAX_CHOICES, "structured_outputs.choice")] | None = None
    grammar: GrammarText | None = Field(None, description="Lark, or GBNF.")
    json_object: bool | None = None
    disable_any_whitespace: bool | None = Field(None, description="JSON without blanks.")
    disable_additional_properties: bool | None = Field(
        None, description="Objects that name properties have no others."
    )
    whitespace_pattern: GrammarText | None = Field(None, description="Matches what stands between tokens.")

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return _sifted(values, Place.STRUCTURED_OUTPUTS)

    def specs(self) -> list[GrammarSpec]:
        """The grammars that this asks for."""
        style = JsonStyle(
            whitespace_pattern=self.whitespace_pattern,
            compact=bool(self.disable_any_whitespace),
            closed=bool(self.disable_additional_properties),
        )
        return _specs(
            {
                "structured_outputs.json": self.json_,
                "structured_outputs.regex": self.regex,
                "structured_outputs.choice": self.choice,
                "structured_outputs.grammar": self.grammar,
                "structured_outputs.json_object": self.json_object or None,
            },
            style,
        )


class StructuredBody(RequestBody):
    """The fields of a body that say what its answers look like; at most one may."""

    response_format: ResponseFormat | None = Field(None, description="JSON, or JSON by a schema.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="A schema, an expression, choices or a grammar that answers follow."
    )
    guided_json: SchemaOrText | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Annotated[Choices, bounded(limits.MAX_CHOICES, "guided_choice")] | None = None
    guided_grammar: GrammarText | None = None
    guided_whitespace_pattern: GrammarText | None = None
    json_schema: SchemaOrText | None = None
    regex: GrammarText | None = None
    ebnf: GrammarText | None = None
    grammar: GrammarText | None = None

    def grammar_spec(self) -> GrammarSpec | None:
        """The grammar that answers have to follow, if one is asked for.

        Raises:
            RequestError: several are asked for, or one is malformed.
        """
        style = JsonStyle(whitespace_pattern=self.guided_whitespace_pattern)
        names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        others = ("json_schema", "regex", "ebnf", "grammar")
        asked = _specs({name: getattr(self, name) for name in (*names, *others)}, style)
        if self.structured_outputs is not None:
            asked += self.structured_outputs.specs()
        of_format = None if self.response_format is None else self.response_format.spec()
        if of_format is not None:
            asked.append(of_format)
        if len(asked) > 1:
            first, second = asked[0].param, asked[1].param
            raise RequestError(f"'{first}' and '{second}' both say what answers look like: give one", second)
        return asked[0] if asked else None


async def compiled_grammar(
    service: Service, body: StructuredBody, tokenizer: Tokenizer, ignored: list[str]
) -> CompiledGrammar | None:
    """The grammar of a request, ready for answers that ``tokenizer`` reads; None if it asks for none.

    ``ignored`` takes the paths of keywords that answers are not held to.

    Raises:
        RequestError: several grammars, or one that answers can't be held to; names the place.
        QueueFull: too many grammars wait to be compiled.
    """
    return await compiled(service, body.grammar_spec(), tokenizer, ignored)


async def compiled(
    service: Service, spec: GrammarSpec | None, tokenizer: Tokenizer, ignored: list[str]
) -> CompiledGrammar | None:
    """A grammar ready for answers that ``tokenizer`` reads; None if there is none.

    ``ignored`` takes the paths of keywords that answers are not held to.

    Raises:
        RequestError: answers can't be held to it; names the place.
        QueueFull: too many grammars wait to be compiled.
    """
    if spec is None:
        return None
    grammar = await service.grammars.compile(spec, tokenizer)
    ignored.extend(f"{spec.param}{path}" for path in grammar.left_out)
    return grammar


def _sifted(values: Any, place: Place) -> Any:
    return rules_of(place).sift(values, f"{place.value}.") if isinstance(values, dict) else values


def _specs(given: Mapping[str, Any], style: JsonStyle) -> list[GrammarSpec]:
    """The grammars that fields ask for; the last part of a field's name says how it is read."""
    return [_spec(param, value, style) for param, value in given.items() if value is not None]


def _spec(param: str, value: Any, style: JsonStyle) -> GrammarSpec:
    kind = param.rpartition(".")[2].removeprefix("guided_")
    if kind == "regex":
        return GrammarSpec.regex(value, param=param)
    if kind == "choice":
        return GrammarSpec.choice(value, param=param)
    if kind in ("grammar", "ebnf"):
        return (
            GrammarSpec.lark(value, param=param) if _is_lark(value) else GrammarSpec.gbnf(value, param=param)
        )
    if kind == "json_object":
        return GrammarSpec.json_object(param=param, style=style)
    return _of_schema(_parsed(value, param) if isinstance(value, str) else value, param, style)


def _of_schema(schema: Schema | None, param: str, style: JsonStyle = DEFAULT_STYLE) -> GrammarSpec:
    if schema is None:
        return GrammarSpec.json_object(param=param, style=style)
    spec = GrammarSpec.json_schema(schema, param=param, style=style)
    if len(spec.text) > limits.MAX_GRAMMAR_LENGTH:
        raise RequestError(
            f"'{param}' has {len(spec.text):,} characters; {limits.MAX_GRAMMAR_LENGTH:,} are allowed", param
        )
    return spec


def _parsed(text: str, param: str) -> Schema:
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"'{param}' is not JSON: {error}", param) from None
    if not isinstance(schema, dict | bool):
        raise RequestError(f"'{param}' must be a JSON schema: an object or a boolean", param)
    return schema


def _is_lark(text: str) -> bool:
    """Whether a grammar is Lark, whose first rule is ``start:``; GBNF's is ``root ::=``."""
    return "::=" not in text
