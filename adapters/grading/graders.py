"""What a grader is: OpenAI's objects, checked whole before anything is graded."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from manylora.adapters.grading.formula import FormulaFault, is_variable, parse_formula
from manylora.adapters.grading.similarity import MEASURES
from manylora.adapters.grading.templates import MAX_TEMPLATE, TemplateFault, check_template

MAX_GRADERS: Final = 16  # of one multi grader
MAX_MESSAGES: Final = 64  # that a judge is given
MAX_NAME: Final = 256  # characters
_REFUSED: Final = {
    "python": "python graders would run code on this server: it runs none",
    "label_model": "label_model graders are not served: score_model asks a model for a number",
    "meteor": "meteor needs WordNet's synonyms, which are not here",
}


class GraderFault(Exception):
    """A grader is malformed. ``param`` is where, as ``graders.style.input``."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


T = TypeVar("T", bound=_Part)

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Template = Annotated[str, Field(max_length=MAX_TEMPLATE)]


class StringCheck(_Part):
    """Whether a text is, or is part of, another."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Part):
    """How alike two texts are."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]


assert {"cosine", *MEASURES} == set(TextSimilarity.model_fields["evaluation_metric"].annotation.__args__)  # type: ignore[union-attr]


class Text(_Part):
    """A piece of a message."""

    type: Literal["input_text", "output_text"]
    text: Template


class Message(_Part):
    """What a judge is told."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Text | Annotated[list[Template | Text], Field(min_length=1, max_length=MAX_MESSAGES)]
    type: Literal["message"] = "message"

    @property
    def texts(self) -> list[str]:
        """The templates of it, in order."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part.text for part in parts]


class SamplingParams(_Part):
    """How a judge draws its answer."""

    max_completions_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    reasoning_effort: str | None = Field(None, max_length=16)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)


def _ordered(bounds: list[float]) -> list[float]:
    if not bounds[0] < bounds[1]:
        raise ValueError("the first number must be less than the second")
    return bounds


Range = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_ordered),
]


class ScoreModel(_Part):
    """A number that a model gives."""

    type: Literal["score_model"]
    name: Name
    model: str = Field(min_length=1, max_length=2048)
    input: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    range: Range | None = None
    sampling_params: SamplingParams | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number that it may give."""
        return (0.0, 1.0) if self.range is None else (self.range[0], self.range[1])


class Multi(_Part):
    """A number computed from those of several graders."""

    type: Literal["multi"]
    name: Name
    graders: dict[str, Any]
    calculate_output: str


Single = StringCheck | TextSimilarity | ScoreModel


class MultiGrader:
    """A multi grader whose parts and formula are checked."""

    def __init__(self, described: Multi, graders: dict[str, Single]) -> None:
        self.name, self.type = described.name, described.type
        self.graders = graders
        try:
            self.compute = parse_formula(described.calculate_output, graders.keys())
        except FormulaFault as fault:
            raise GraderFault(f"calculate_output: {fault}", "calculate_output") from None


Grader = Single | MultiGrader

_SINGLE: Final[dict[str, type[Single]]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "score_model": ScoreModel,
}


def parse_grader(value: Any) -> Grader:
    """The grader that a JSON object describes.

    Raises:
        GraderFault: it describes none that is known here.
    """
    if not isinstance(value, dict) or value.get("type") != "multi":
        return _single(value, "")
    described = _as(Multi, value, "")
    if not 1 <= len(described.graders) <= MAX_GRADERS:
        raise GraderFault(f"graders: a multi grader has 1 to {MAX_GRADERS}", "graders")
    graders = described.graders
    if isinstance(graders.get("type"), str):  # one grader by itself, as OpenAI's types have it
        name = graders.get("name")
        graders = {name if isinstance(name, str) else "": graders}
    for name in graders:
        if not is_variable(name):
            raise GraderFault(
                "graders: their names are letters, digits and '_', and no functions: the formula has them",
                "graders",
            )
    return MultiGrader(described, {name: _single(each, f"graders.{name}.") for name, each in graders.items()})


def _single(value: Any, prefix: str) -> Single:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in _REFUSED:
        raise GraderFault(f"{prefix}type: {_REFUSED[kind]}", f"{prefix}type")
    if not isinstance(kind, str) or kind not in _SINGLE:
        known = ", ".join(_SINGLE) + ("" if prefix else ", multi")
        raise GraderFault(f"{prefix}type: must be one of {known}", f"{prefix}type")
    if value.get("evaluation_metric") == "meteor":
        where = f"{prefix}evaluation_metric"
        raise GraderFault(f"{where}: {_REFUSED['meteor']}", where)
    grader = _as(_SINGLE[kind], value, prefix)
    for where, template in _templates(grader):
        try:
            check_template(template)
        except TemplateFault as fault:
            raise GraderFault(f"{prefix}{where}: {fault}", f"{prefix}{where}") from None
    return grader


def _templates(grader: Single) -> list[tuple[str, str]]:
    if isinstance(grader, ScoreModel):
        return [
            (f"input[{at}].content", text)
            for at, message in enumerate(grader.input)
            for text in message.texts
        ]
    return [("input", grader.input), ("reference", grader.reference)]


def _as(kind: type[T], value: Any, prefix: str) -> T:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = prefix + ".".join(str(step)[:64] for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise GraderFault(f"{place}: {message}", place.rstrip(".")) from None
