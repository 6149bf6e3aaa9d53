"""Tools that an answer may call, and which of them it has to: fields, types and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from manylora.adapters.format.answers.values import Properties
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.hand_read import each_object, unsupported_kind
from manylora.server.errors import RequestError

_TOOL, _FUNCTION = rules_of(Place.TOOL), rules_of(Place.FUNCTION)
_CHOICE: Final = "tool_choice"


ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # OpenAI takes 64, Anthropic 128


class Function(RequestBody):
    """What a tool is called, what it does, and what it takes."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON Schema of an object. Left out: the tool takes nothing."
    )
    strict: bool | None = Field(None, description="Whether calls are held to the schema.")


class Tool(RequestBody):
    """One tool."""

    type: Literal["function"] = "function"
    function: Function

    def for_template(self) -> dict[str, Any]:
        """What the chat template sees."""
        function, parameters = self.function, self.function.parameters
        described: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            described["description"] = function.description
        described["parameters"] = {"type": "object", "properties": {}} if parameters is None else parameters
        return {"type": "function", "function": described}

    @property
    def properties(self) -> Properties:
        """The schemas of its arguments by name."""
        properties = (self.function.parameters or {}).get("properties")
        return properties if isinstance(properties, Mapping) else {}


def sift_tools(value: Any) -> Any:
    """The tools without what asks for nothing.

    Raises:
        RequestError: naming what is wrong by its path.
    """
    return each_object(value, limits.MAX_TOOLS, "tools", _sift_tool)


def _sift_tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type", "function")
    if isinstance(kind, str) and kind != "function":
        raise unsupported_kind(kind, where, "tools are functions")
    kept = _TOOL.sift(tool, f"{where}.")
    if isinstance(kept.get("function"), dict):
        kept["function"] = _FUNCTION.sift(kept["function"], f"{where}.function.")
        _check_parameters(kept["function"].get("parameters"), f"{where}.function.parameters")
    return kept


def _check_parameters(schema: Any, path: str) -> None:
    if isinstance(schema, dict) and schema.get("type", "object") != "object":
        raise RequestError(f"'{path}.type' must be \"object\"", f"{path}.type")


Tools = Annotated[
    list[Tool],
    Field(max_length=limits.MAX_TOOLS),
    BeforeValidator(sift_tools, json_schema_input_type=list[Tool]),
]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called, and which may be."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None  # None: all
    named: bool = False  # one is named, which is called


def _read_choice(value: Any) -> ToolChoice:
    if value in ("none", "auto", "required") and isinstance(value, str):
        return ToolChoice(value)  # type: ignore[arg-type]  # one of the three
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function" and set(value) == {"type", "function"}:
        return ToolChoice("required", (_name_of(value, _CHOICE),), named=True)
    if kind == "allowed_tools" and set(value) == {"type", "allowed_tools"}:
        return _read_allowed(value["allowed_tools"], f"{_CHOICE}.allowed_tools")
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise unsupported_kind(kind, _CHOICE, "tools are functions")
    raise RequestError(
        f'\'{_CHOICE}\' must be "none", "auto", "required", a function by its name, or allowed tools',
        _CHOICE,
    )


def _read_allowed(value: Any, path: str) -> ToolChoice:
    if not isinstance(value, dict) or set(value) != {"mode", "tools"}:
        raise RequestError(f"'{path}' must hold 'mode' and 'tools'", path)
    mode, tools = value["mode"], check_size(value["tools"], limits.MAX_TOOLS, f"{path}.tools")
    if mode not in ("auto", "required"):
        raise RequestError(f'\'{path}.mode\' must be "auto" or "required"', f"{path}.mode")
    if not isinstance(tools, list) or not tools:
        raise RequestError(f"'{path}.tools' must be a list of tools", f"{path}.tools")
    names = tuple(_name_of(tool, f"{path}.tools[{index}]") for index, tool in enumerate(tools))
    return ToolChoice(mode, names)


def _name_of(value: Any, path: str) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) and set(function) == {"name"} else None
    if not isinstance(name, str):
        raise RequestError(f"'{path}.function' must hold the 'name' of a tool", f"{path}.function")
    return name


ToolChoiceField = Annotated[
    ToolChoice, PlainValidator(_read_choice, json_schema_input_type=str | dict[str, Any])
]


class ToolsBody(RequestBody):
    """The fields of a body that say which tools its answers may call."""

    tools: Tools | None = Field(None, description="What the answer may call.")
    tool_choice: ToolChoiceField | None = Field(
        None,
        description="'none', 'auto', 'required', {'type': 'function', 'function': {'name': ...}}, or "
        "{'type': 'allowed_tools', 'allowed_tools': {'mode': 'auto' or 'required', 'tools': [...]}}.",
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call.")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that one answer may call."""

    given: Sequence[Tool]  # by the request
    tools: Sequence[Tool]  # that the model is shown
    callable: Sequence[Tool]  # that it may call
    required: bool = False
    named: bool = False  # by the request: it is one
    several: bool = True  # calls in one answer

    @property
    def properties(self) -> dict[str, Properties]:
        """The schemas of the arguments of the tools that may be called."""
        return {tool.function.name: tool.properties for tool in self.callable}

    def path_of(self, tool: Tool) -> str:
        """Where the request describes what a tool takes."""
        index = next(index for index, each in enumerate(self.given) if each is tool)
        return f"tools[{index}].function"

    def for_template(self) -> list[dict[str, Any]]:
        """What the chat template sees."""
        return [tool.for_template() for tool in self.tools]


def read_use(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """What a request says of tools; None: none are called, and the model hears of none.

    Raises:
        RequestError: a choice without tools, or of one that is not among them, or two of one name.
    """
    chosen = ToolChoice("auto") if choice is None else choice
    if not tools:
        if chosen.mode == "required" or chosen.names is not None:
            raise RequestError(f"'{_CHOICE}' asks for a tool, but 'tools' has none", _CHOICE)
        return None
    by_name: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        if by_name.setdefault(tool.function.name, tool) is not tool:
            path = f"tools[{index}].function.name"
            raise RequestError(f"'{path}': there are two tools called {tool.function.name!r}", path)
    for name in chosen.names or ():
        if name not in by_name:
            raise RequestError(f"'{_CHOICE}': there is no tool called {name[:64]!r}", _CHOICE)
    if chosen.mode == "none":
        return None
    allowed = list(tools) if chosen.names is None else [by_name[name] for name in dict.fromkeys(chosen.names)]
    return ToolUse(
        tools,
        list(tools) if chosen.named else allowed,
        allowed,
        required=chosen.mode == "required",
        named=chosen.named,
        several=parallel is not False and not chosen.named,
    )
