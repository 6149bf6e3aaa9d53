"""Tests stand alone and see what users of the code see: read from their source."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from tests.support.order import LONG
from tests.support.paths import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))

# Names of other projects that begin with an underscore although using them is meant, or has no substitute.
OF_OTHERS = {
    # torch: what a device that is only simulated has to put in place of the real one's, and operations say
    *("_C", "_buffers", "_disable_current_modes", "_disabled_torch_function_impl", "_lazy_init"),
    *("_make_wrapper_subclass", "_only_lift_cpu_tensors", "_parameters", "_python_dispatch", "_schema"),
    "_set_only_lift_cpu_tensors",
    "_exit",  # os: leave a forked child without running the parent's cleanup
    "_cdata",  # torch: the only identity that all Python objects of one storage share
    "_attn_implementation",  # transformers: which attention a model's config selects
    "_is_mkldnn_bf16_supported",  # torch: what the processor can do, for a test to pretend otherwise
}

ACCESSORS = {"getattr", "setattr", "delattr"}  # built in, or monkeypatch's


def imported_tests(source: str) -> Iterator[str]:
    """Test modules that ``source`` imports or imports from, at whatever depth of the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("tests.") and ".test_" in name:
                yield name


def private_uses(source: str) -> Iterator[str]:
    """Names of others that begin with one underscore and that ``source`` imports, reads or patches."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom():
                found = [alias.name for alias in node.names]
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute():
                found = [node.attr]
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in ACCESSORS:
                texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
                found = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
            case _:
                continue
        for name in found:
            if name.startswith("_") and not name.startswith("__") and name not in OF_OTHERS:
                yield f"line {node.lineno}: {name}"


def violations(check: Callable[[str], Iterator[str]]) -> dict[str, list[str]]:
    """What ``check`` finds, by file."""
    found = {str(path.relative_to(ROOT)): list(check(path.read_text())) for path in FILES}
    return {name: uses for name, uses in found.items() if uses}


def test_no_test_imports_another() -> None:
    """What several tests share stands in tests/support, or is a fixture."""
    assert violations(imported_tests) == {}


def test_no_test_looks_behind_an_underscore() -> None:
    """A test that uses private names fixes how something is done, not what is promised."""
    assert violations(private_uses) == {}


def test_both_checks_see_what_they_look_for() -> None:
    source = """
from tests.server.test_threads import helper
from tests.adapters.merge.conftest import LIMITS
from tests.server import test_threads
import tests.server.test_threads as other
from package.module import _helper, __version__
thing._part.method()
self._own = os._exit
monkeypatch.setattr("package.module._LIMIT", 3)
monkeypatch.setattr(thing, "_step", None)
getattr(thing, "_quiet", None)
thing.__class__
"""
    assert list(imported_tests(source)) == [
        "tests.server.test_threads.helper",
        "tests.server.test_threads",
        "tests.server.test_threads",
    ]
    found = [use.partition(": ")[2] for use in private_uses(source)]
    assert sorted(found) == ["_LIMIT", "_helper", "_part", "_quiet", "_step"]


def test_files_that_come_first_are_there() -> None:
    assert [file for file in LONG if not (ROOT / "tests" / file).is_file()] == []
    assert len(set(LONG)) == len(LONG)
