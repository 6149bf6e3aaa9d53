"""A model of options as people meet it: flags, help, defaults, reference tables, and what is wrong where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from manylora.adapters.options.command_line import given, with_options
from manylora.adapters.options.loading import (
    OptionsRefused,
    build,
    file_places,
    flag_places,
    read_yaml,
    unknown_keys,
)
from manylora.adapters.options.option import Option, default_text
from manylora.adapters.options.reference_tables import flag_cell, option_tables
from manylora.adapters.options.values import parse_size, split_list


class Oven(BaseModel):
    """An options model with a field of each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dish: Annotated[str, Option("Food", "NAME", "What is baked.", "has to be given", default="(required)")]
    toppings: Annotated[
        list[str], BeforeValidator(split_list), Option("Food", "NAMES", "On top.", repeatable=True)
    ] = []
    degrees: Annotated[float, Option("Heat", "N", "How hot."), Field(ge=50, le=300)] = 200.0
    room: Annotated[int, BeforeValidator(parse_size), Option("Heat", "SIZE", "How large.")] = 2**20
    enable_fan: Annotated[bool, Option("Heat", "", "Move the air.", switch=True)] = True
    use_grill: Annotated[bool, Option("Heat", "", "From above.", switch=True)] = False
    pin: Annotated[str | None, Option("Heat", "TEXT", "Keeps children off."), Field(max_length=4)] = None

    @model_validator(mode="after")
    def _check(self) -> Oven:
        if self.use_grill and self.enable_fan:
            raise ValueError("use_grill: not with the fan\nenable_fan: not with the grill")
        return self


app = typer.Typer(rich_markup_mode=None)


@app.command()
@with_options(Oven)
def bake(quiet: Annotated[bool, typer.Option("--quiet")] = False, **options: Any) -> None:
    typer.echo(json.dumps({"quiet": quiet, **given(options)}))


def baked(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_command_has_a_flag_for_every_field_and_passes_on_what_was_given() -> None:
    assert baked() == {"quiet": False}
    found = baked("--quiet", "--dish", "pie", "--toppings", "a,b", "--toppings", "c", "--no-fan")
    assert found == {"quiet": True, "dish": "pie", "toppings": ["a,b", "c"], "enable_fan": False}
    assert baked("--enable-fan", "--use-grill") == {"quiet": False, "enable_fan": True, "use_grill": True}
    assert baked("--no-use-grill", "--degrees", "hot") == {
        "quiet": False,
        "use_grill": False,
        "degrees": "hot",
    }


def test_defaults_as_people_read_them() -> None:
    found = {name: default_text(field) for name, field in Oven.model_fields.items()}
    assert found == {
        "dish": "(required)",
        "toppings": None,
        "degrees": "200",
        "room": "1MiB",
        "enable_fan": "on",
        "use_grill": "off",
        "pin": None,
    }


def test_a_table_for_each_panel() -> None:
    def cells(name: str, field: FieldInfo, option: Option) -> list[str]:
        return [flag_cell(name, option), option.meaning]

    assert option_tables(Oven, ("Flag", "Meaning"), cells) == (
        "\n## Food\n\n| Flag | Meaning |\n|---|---|\n"
        "| `--dish NAME` | What is baked. |\n| `--toppings NAMES` | On top. |\n"
        "\n## Heat\n\n| Flag | Meaning |\n|---|---|\n"
        "| `--degrees N` | How hot. |\n| `--room SIZE` | How large. |\n"
        "| `--enable-fan`, `--no-fan` | Move the air. |\n"
        "| `--use-grill`, `--no-use-grill` | From above. |\n| `--pin TEXT` | Keeps children off. |\n"
    )


def faults(values: dict[str, Any], places: dict[str, str]) -> list[str]:
    with pytest.raises(OptionsRefused) as caught:
        build(Oven, values, places, secrets=["pin"])
    return str(caught.value).splitlines()


def test_every_fault_begins_with_the_place_of_its_value() -> None:
    values = {"toppings": ["a", 3], "degrees": "x" * 100, "pin": "12345", "room": "2 parsecs"}
    places = file_places(Path("o.yaml"), ["toppings", "pin"]) | flag_places(["degrees"])
    shown = repr("x" * 100)[:80]
    assert faults(values, places) == [
        "--dish is required",
        "o.yaml: toppings[1]: must be a valid string (got 3)",
        f"--degrees: must be a valid number, unable to parse string as a number (got {shown}…)",
        "room: must be a size such as 2GiB, 512MiB, 1.5GB or a number of bytes (got '2 parsecs')",
        "o.yaml: pin: string should have at most 4 characters",
    ]


def test_values_that_do_not_go_together() -> None:
    assert faults({"dish": "pie", "use_grill": True}, {"use_grill": "--use-grill"}) == [
        "--use-grill: not with the fan",
        "enable_fan: not with the grill",
    ]


def test_unknown_keys_have_the_nearest_name_as_it_is_written_there() -> None:
    assert unknown_keys(["dish", "degree", 7], Oven, lambda key: f"o.yaml: {key}") == [
        "o.yaml: degree: no such key (did you mean degrees?)",
        "o.yaml: 7: no such key",
    ]
    shout = str.upper
    assert unknown_keys(["dsh"], Oven, lambda key: shout(str(key)), shout, "option") == [
        "DSH: no such option (did you mean DISH?)"
    ]


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "o.yaml"
    file.write_text("")
    assert read_yaml(file) == {}
    for content, said in (
        ("- a", "must be a mapping of options to values, not list"),
        ("a: [", "not valid YAML"),
    ):
        file.write_text(content)
        with pytest.raises(OptionsRefused, match=said):
            read_yaml(file)
    with pytest.raises(OptionsRefused, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
