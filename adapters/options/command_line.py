"""Makes a typer command whose options are the fields of an options model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from manylora.adapters.options.option import default_text, flag_of, off_flag_of, option_of

Command = Callable[..., None]


def with_options(model: type[BaseModel]) -> Callable[[Command], Command]:
    """Make a decorator that gives ``function(..., **options)`` one flag for each field of an options model.

    The function's own parameters come first. Values stay text and absent ones ``None``: the model alone
    decides what is valid, wherever a value comes from.
    """

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
        parameters += [_parameter(name, field) for name, field in model.model_fields.items()]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that were given."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = option_of(field)
    spelled = f"{flag_of(name)}/{off_flag_of(name)}" if option.switch else flag_of(name)
    kind: Any = bool | None if option.switch else list[str] | None if option.repeatable else str | None
    flag = typer.Option(
        spelled,
        metavar=option.metavar,
        help=f"{option.meaning} Default: {default_text(field) or 'none'}.",
        show_default=False,
        rich_help_panel=option.panel,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, flag]
    )
