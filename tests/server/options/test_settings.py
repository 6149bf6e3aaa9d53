"""Configuration: precedence, refusals that name the option, sizes, and the page that documents it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.options.option import off_flag_of, option_of
from manylora.server.errors import ConfigError
from manylora.server.options.loading import load_settings
from manylora.server.options.reference import page
from manylora.server.options.settings import Settings
from manylora.server.options.types import ENV_PREFIX
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(variable)


def write(path: Path, **keys: object) -> Path:
    path.write_text(yaml.safe_dump(keys))
    return path


# A valid value other than the default for options of every kind: (flag or variable text, YAML value, result).
VALUES = {
    "port": ("1234", 2345, 1234),
    "max_num_seqs": ("7", 8, 7),
    "kv_cache_memory": ("2GiB", "512MiB", 2 << 30),
    "dtype": ("fp32", "bf16", "fp32"),
    "log_level": ("debug", "error", "debug"),
    "enable_prefix_cache": ("false", True, False),
    "shutdown_timeout": ("2.5", 3, 2.5),
    "max_model_len": ("64", "auto", 64),
    "adapter": ("a=/x", {"b": "/y"}, {"a": Path("/x")}),
    "adapter_root": ("/x,/y", ["/z"], [Path("/x"), Path("/y")]),
}


@pytest.mark.slow
@settings(deadline=None)  # it reads files, on machines that may be busy
@given(
    name=st.sampled_from(sorted(VALUES)),
    given_in=st.sets(st.sampled_from(["flag", "variable", "file"])),
)
def test_flag_beats_variable_beats_file_beats_default(
    name: str, given_in: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text, in_file, result = VALUES[name]
    plain = load_settings({})
    file = write(
        tmp_path_factory.mktemp("config") / "c.yaml", **({name: in_file} if "file" in given_in else {})
    )
    only_file = getattr(load_settings({}, file), name)
    # Of two places the one that loses carries a value that would show.
    loser = getattr(load_settings({name: _other(name)}), name)
    with pytest.MonkeyPatch.context() as patch:
        if "variable" in given_in:
            value = _other(name) if "flag" in given_in else text
            patch.setenv(ENV_PREFIX + name.upper(), str(value))
        found = getattr(load_settings({name: text} if "flag" in given_in else {}, file), name)
    if given_in & {"flag", "variable"}:
        assert found == result != loser
    else:
        assert found == (only_file if "file" in given_in else getattr(plain, name))


def _other(name: str) -> str:
    other = {"dtype": "bf16", "log_level": "error", "enable_prefix_cache": "true", "kv_cache_memory": "1GiB"}
    other |= {"adapter": "c=/c", "adapter_root": "/c"}
    return other.get(name, "9")


def test_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_CONFIG", str(write(tmp_path / "a.yaml", port=1)))
    assert load_settings({}).port == 1
    assert load_settings({}, write(tmp_path / "b.yaml", port=2)).port == 2


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("prot", "prot: no such key (did you mean port?)"),
        ("max-num-seqs", "max-num-seqs: no such key (did you mean max_num_seqs?)"),
        ("zzz", "zzz: no such key"),
    ],
)
def test_unknown_key_in_file(tmp_path: Path, key: str, message: str) -> None:
    file = write(tmp_path / "c.yaml", **{key: 1})
    with pytest.raises(ConfigError) as caught:
        load_settings({}, file)
    assert str(caught.value) == f"{file}: {message}"


def test_unknown_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_PROT", "1")
    monkeypatch.setenv("MANYLORA_SERVICE_HOST", "10.0.0.1")  # what Kubernetes adds by itself is no mistake
    monkeypatch.setenv("MANYLORA_PORT_8000_TCP", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("MANYLORA_URL", "http://10.0.0.1:8000")  # for the commands that ask a server
    with pytest.raises(ConfigError) as caught:
        load_settings({})
    assert str(caught.value) == "MANYLORA_PROT: no such option (did you mean MANYLORA_PORT?)"


def test_every_fault_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_DTYPE", "fp8")
    file = write(tmp_path / "c.yaml", max_lora_rank=0)
    with pytest.raises(ConfigError) as caught:
        load_settings({"port": "70000"}, file)
    assert set(str(caught.value).splitlines()) == {
        "--port: must be less than or equal to 65535 (got '70000')",
        "MANYLORA_DTYPE: must be 'auto', 'bf16', 'fp16' or 'fp32' (got 'fp8')",
        f"{file}: max_lora_rank: must be greater than or equal to 1 (got 0)",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "must be a mapping of options to values, not list"),
        ("a: [", "not valid YAML"),
        ("port: x", "port: must be a valid integer"),
        ("port: 8.5", "port: must be a valid integer"),
        ("port: true\nmodel: 1", "model: must be a valid string"),
        ("shutdown_timeout: .nan", "shutdown_timeout: must be a finite number"),
        ("adapter: {'a b': x}", "adapter: 'a b' is not an adapter name"),
        ("adapter: {smollm2-135m: x}", "adapter: 'smollm2-135m' is the base model's name"),
        ("adapter: [x]", "adapter: must be NAME=PATH, not 'x'"),
        ("adapter: [a=x, a=y]", "adapter: 'a' is given twice"),
        ("served_model_name: a+b", "served_model_name: 'a+b' must not contain"),
        ("api_key: ['good', ' ']", "api_key: a key is empty"),
        ("admin_api_key: ['']", "admin_api_key: a key is empty"),
        ("kv_cache_memory: 0", "kv_cache_memory: must be greater than or equal to 1"),
        ("adapter_memory: 2 parsecs", "adapter_memory: must be a size such as 2GiB"),
        ("port: tcp://10.0.0.1:8000", "enableServiceLinks"),
    ],
)
def test_bad_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_settings({}, file)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


def test_no_memory_is_a_size_where_it_means_something() -> None:
    assert load_settings({"adapter_cache_memory": "0"}).adapter_cache_memory == 0
    assert load_settings({"adapter_cache_memory": "auto"}).adapter_cache_memory is None
    with pytest.raises(ConfigError, match="--adapter-memory: must be greater than or equal to 1"):
        load_settings({"adapter_memory": "0"})


def test_missing_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings({}, tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_settings({}, tmp_path / "empty.yaml") == Settings()


def test_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYLORA_API_KEY", "")
    monkeypatch.setenv("MANYLORA_PORT", "")
    assert load_settings({}).api_key == []


@pytest.mark.parametrize("field", ["api_key", "admin_api_key"])
def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(ENV_PREFIX + field.upper(), "hush1,hush2")
    settings = load_settings({})
    assert [key.get_secret_value() for key in getattr(settings, field)] == ["hush1", "hush2"]
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.model_dump())
    with pytest.raises(ConfigError) as caught:
        load_settings({field: {"hush": 1}})
    assert "hush" not in str(caught.value)


def test_model_name(tmp_path: Path) -> None:
    assert Settings().model_name == "smollm2-135m"
    assert Settings(model="org/name").model_name == "org/name"
    assert Settings(model=str(tmp_path)).model_name == tmp_path.name
    assert Settings(model="org/name", served_model_name="base").model_name == "base"


def test_data_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "manylora"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_data_dir() == Path("/home/someone/.local/share/manylora")


def test_every_number_has_bounds() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float):
            bounds = {type(item).__name__ for item in field.metadata}
            assert {"Ge", "Le"} <= bounds, name


def test_page_is_current() -> None:
    committed = ROOT / "docs" / "configuration.md"
    assert committed.read_text() == page(), "run: make docs"


def test_every_switch_can_be_turned_off() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation is bool:
            assert option_of(field).switch
            assert off_flag_of(name) == f"--no-{name.removeprefix('enable_').replace('_', '-')}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 2}, "--replicas: does nothing without ray"),
        ({"replica_gpus": 0.5}, "--replica-gpus: does nothing without ray"),
        ({"ray": True, "replicas": 3, "max_replicas": 2}, "--max-replicas: must not be less than replicas"),
    ],
)
def test_options_of_many_machines_that_would_do_nothing_are_refused(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(options)
