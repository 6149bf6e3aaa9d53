"""The body of a new job: OpenAI's fields, and ``lora``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from manylora.server.api.http import limits
from manylora.server.api.http.body import Metadata, RequestBody
from manylora.server.errors import RequestError

MAX_SUFFIX: Final = 64
MAX_SEED: Final = 2**31 - 1
AUTO: Final = "auto"
MAX_PATIENCE: Final = 9  # evaluations, of which a run has ten

_FILE = Annotated[str, Field(min_length=1, max_length=limits.MAX_RESPONSE_ID_LENGTH)]


def _auto_or_whole(most: int) -> Any:
    def check(value: Any) -> Any:
        if value == AUTO or (type(value) is int and 1 <= value <= most):
            return value
        raise PydanticCustomError("bounds", f"must be 'auto' or a whole number from 1 to {most}")

    schema = {"anyOf": [{"const": AUTO}, {"type": "integer", "minimum": 1, "maximum": most}]}
    return Annotated[int | str, PlainValidator(check), WithJsonSchema(schema)]


def _auto_or_number(most: float | None = None) -> Any:
    bound = "" if most is None else f" and at most {most:g}"

    def check(value: Any) -> Any:
        numeric = type(value) in (int, float) and math.isfinite(value) and value > 0
        if value == AUTO:
            return value
        if numeric and (most is None or value <= most):
            return float(value)
        raise PydanticCustomError("bounds", f"must be 'auto' or a number above 0{bound}")

    number = {"type": "number", "exclusiveMinimum": 0, **({} if most is None else {"maximum": most})}
    return Annotated[float | str, PlainValidator(check), WithJsonSchema({"anyOf": [{"const": AUTO}, number]})]


class Hyperparameters(RequestBody):
    """How long, in which steps and how fast is learned."""

    n_epochs: _auto_or_whole(50) = AUTO  # type: ignore[valid-type]
    batch_size: _auto_or_whole(256) = AUTO  # type: ignore[valid-type]
    learning_rate_multiplier: _auto_or_number() = AUTO  # type: ignore[valid-type]


class DpoHyperparameters(Hyperparameters):
    """The same for preferences."""

    beta: _auto_or_number(2.0) = AUTO  # type: ignore[valid-type]


class Supervised(RequestBody):
    """Learning answers."""

    hyperparameters: Hyperparameters | None = None


class Dpo(RequestBody):
    """Learning preferences."""

    hyperparameters: DpoHyperparameters | None = None


class Method(RequestBody):
    """What is learned."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Any = None


class Lora(RequestBody):
    """The adapter: options of `manylora train`, whose defaults hold for what is left out."""

    r: int | None = Field(None, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0, le=1e6)
    dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: list[Annotated[str, Field(min_length=1, max_length=200)]] | str | None = Field(
        None, max_length=200
    )
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init: str | None = Field(None, max_length=40)
    quantization: Literal["none", "nf4", "int8"] | None = None


class JobBody(RequestBody):
    """A new job."""

    model: str = Field(min_length=1, max_length=limits.MAX_MODEL_LENGTH)
    training_file: _FILE
    validation_file: _FILE | None = None
    suffix: str | None = Field(None, min_length=1, max_length=MAX_SUFFIX)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(None, description="Deprecated: 'method' has them.")
    integrations: list[Any] | None = Field(None, max_length=64)
    lora: Lora | None = None
    task: Literal["classification", "embedding"] | None = Field(
        None, description="Learn classes of texts, or which texts belong together, instead of answers."
    )

    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=MAX_PATIENCE,
        description="End after so many evaluations in a row without a lower validation loss.",
    )

    samples: int | None = Field(
        None, ge=0, le=64, description="Rows whose prompts are answered by base and model at checkpoints."
    )
    sample_tokens: int = Field(64, ge=1, le=1024, description="Of each of those answers.")
    grader: dict[str, Any] | None = Field(
        None, description="Grades the samples: string_check, text_similarity, score_model or multi."
    )

    @property
    def kind(self) -> str:
        """``supervised`` or ``dpo``."""
        return "supervised" if self.method is None else self.method.type

    @property
    def numbers(self) -> dict[str, Any]:
        """The hyperparameters, wherever they stand."""
        given: Hyperparameters | None = self.hyperparameters
        if self.method is not None:
            part = self.method.dpo if self.method.type == "dpo" else self.method.supervised
            given = part.hyperparameters if part is not None and part.hyperparameters is not None else given
        return {} if given is None else given.model_dump()


def check(body: JobBody) -> None:
    """Refuse what is not done here, and what contradicts itself.

    Raises:
        RequestError: naming the field.
    """
    if body.integrations:
        raise RequestError(
            "'integrations' is not supported by this server: events and result files have what is measured",
            "integrations",
            "unsupported_parameter",
        )
    if body.early_stopping_patience is not None and body.validation_file is None:
        raise RequestError(
            "'early_stopping_patience' needs a 'validation_file', whose loss is looked at",
            "early_stopping_patience",
        )
    if body.samples and body.task is not None:
        raise RequestError("'samples' are answers, which this 'task' does not learn", "samples")
    method = body.method
    if body.task is not None and body.kind == "dpo":
        raise RequestError(
            f"'task': '{body.task}' does not go with the method 'dpo', which learns preferences", "task"
        )
    if method is None:
        return
    if method.type == "reinforcement" or method.reinforcement is not None:
        raise RequestError(
            "The method 'reinforcement' is not supported by this server: supervised and dpo are",
            "method.type",
            "unsupported_parameter",
        )
    other = "supervised" if method.type == "dpo" else "dpo"
    if getattr(method, other) is not None:
        raise RequestError(f"'method.{other}' does not go with the type '{method.type}'", f"method.{other}")
    if body.hyperparameters is not None:
        raise RequestError("Give either 'hyperparameters' or 'method', which has them", "hyperparameters")
