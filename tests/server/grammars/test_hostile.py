"""Grammars that explode, run for ever or overflow: refused within a second, and nothing else is harmed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from time import monotonic, thread_time
from typing import Any

import pytest

from manylora.server.errors import QueueFull, RequestError
from manylora.server.grammars.checks import GrammarChecks
from manylora.server.grammars.compiler import GrammarCompiler
from manylora.server.grammars.grammar import CompiledGrammar, Matcher
from manylora.server.grammars.spec import GrammarSpec
from tests.support.grammars import allowed, takes, tokenizer_of_bytes
from tests.support.tiny_models import VOCAB

SECONDS = 5.0  # a second on a machine that has nothing else to do
TOKENIZER = tokenizer_of_bytes()
SMALL = GrammarSpec.regex("[0-9]", param="p")


def nested(opening: str, inner: str, closing: str, depth: int) -> str:
    return opening * depth + inner + closing * depth


def many_ways(depth: int) -> dict[str, Any]:
    """Each of many schemas is one of several: all combinations are several to the power of many."""
    each = {"anyOf": [{"properties": {f"p{i}": {"const": i}}, "required": [f"p{i}"]} for i in range(10)]}
    return {"type": "object", "allOf": [each] * depth}


def doubling(count: int) -> dict[str, Any]:
    """References that say twice what the one before says."""
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for i in range(1, count):
        defs[f"d{i}"] = {
            "type": "array",
            "prefixItems": [{"$ref": f"#/$defs/d{i - 1}"}] * 2,
            "allOf": [{"minItems": 1}],
        }
    return {"$defs": defs, "$ref": f"#/$defs/d{count - 1}", "minItems": 1}


def regex(pattern: str) -> GrammarSpec:
    return GrammarSpec.regex(pattern, param="p")


def lark(text: str) -> GrammarSpec:
    return GrammarSpec.lark(text, param="p")


def schema(value: Any) -> GrammarSpec:
    return GrammarSpec.json_schema(value, param="p")


HOSTILE: dict[str, GrammarSpec] = {
    "repeated repeats": regex("((a{1,1000}){1,1000}){1,1000}"),
    "nested repeats": regex(nested("(", "a{1,100000}", "){1,100000}", 20)),
    "repeats of one letter": regex("(a{1,100000}){1,100000}"),
    "repeats of several": regex("((a{1,100000}b?){1,100000}c?){1,100000}"),
    "repeats in several ways": regex("((a|b|ab){1,1000}(ba|a){1,1000}){1,1000}"),
    "repeats that may be empty": regex("(a?){1,5000}a{5000}"),
    "parentheses": regex(nested("(", "a", ")", 100_000)),
    "alternatives": regex("|".join(f"{i:x}" * 8 for i in range(20_000))),
    "classes": regex(r"[\w\s]{1,5000}" * 50),
    "intersections": lark("start: A\n" + "A: " + " & ".join(f"/(?s:.*){i}(?s:.{{{i},}})/" for i in range(60))),  # noqa: E501
    "negations": lark("start: A\nA: " + nested("~(", "/a*b/", ")", 5000)),
    "lark parentheses": lark("start: " + nested("(", '"a"', ")", 100_000)),
    "lark repeats": lark('start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}'),
    "rules of rules": lark("start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(5000)) + '\nr5000: "a"'),  # noqa: E501
    "terminals of terminals": lark("start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)) + '\nT60: "a"'),  # noqa: E501
    "gbnf parentheses": GrammarSpec.gbnf("root ::= " + nested("(", '"a"', ")", 100_000), param="p"),
    "gbnf chain": GrammarSpec.gbnf("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(20_000)) + '\nr20000 ::= "a"', param="p"),  # noqa: E501
    "schema combinations": schema(many_ways(12)),
    "schema doubling": schema(doubling(60)),
    "schema lengths": schema({"type": "array", "items": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}}),  # noqa: E501
    "schema items": schema({"type": "array", "prefixItems": [{"type": "array", "minItems": 100_000}] * 100, "minItems": 100}),  # noqa: E501
    "schema of many": schema({"anyOf": [{"properties": {f"a{i}": {}, f"b{i}": {}}, "required": [f"a{i}"]} for i in range(8000)]}),  # noqa: E501
    "schema pattern": schema({"type": "string", "pattern": "(.*a.{200}){5}"}),
    "not JSON": GrammarSpec(GrammarSpec.json_object(param="p").kind, "{", param="p"),
}  # fmt: skip


async def outcome(compiler: GrammarCompiler, spec: GrammarSpec) -> CompiledGrammar | RequestError:
    try:
        return await compiler.compile(spec, TOKENIZER)
    except RequestError as error:
        return error


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    made = GrammarCompiler(VOCAB)
    yield made
    await made.close()


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_grammars(compiler: GrammarCompiler, name: str) -> None:
    """Refused, or taken if they are harmless; the loop stays free and the next grammar compiles."""
    await compiler.compile(SMALL, TOKENIZER)
    pauses: list[float] = []

    async def watch() -> None:
        while True:
            before = monotonic()
            await asyncio.sleep(0.01)
            pauses.append(monotonic() - before)

    watching = asyncio.ensure_future(watch())
    began = monotonic()
    result = await outcome(compiler, HOSTILE[name])
    took = monotonic() - began
    watching.cancel()
    assert took < SECONDS
    assert max(pauses, default=0) < SECONDS / 5, "the loop stood still"
    if isinstance(result, RequestError):
        assert result.code == "invalid_grammar"
        assert result.param is not None
        assert result.param.startswith("p")
        assert len(str(result)) < 1000
    else:
        state = result.start()
        began = monotonic()
        state.take([])
        assert monotonic() - began < SECONDS
    other = await compiler.compile(GrammarSpec.regex("x", param="p"), TOKENIZER)
    assert takes(other, "x", TOKENIZER)


EXPLOSIVE = [name for name in HOSTILE if "repeats" in name]


@pytest.mark.parametrize("name", EXPLOSIVE)
async def test_repetitions_that_explode_are_refused(compiler: GrammarCompiler, name: str) -> None:
    """Although the library takes them: it would give up amid an answer."""
    result = await outcome(compiler, HOSTILE[name])
    assert isinstance(result, RequestError)
    assert "repeats too much" in str(result)


LARGE = (
    "a{1,100000}",
    "[a-z ]{200,5000}",
    "(a{1,100}b{1,100}){1,100}",
    "(.{1,100}a.{1,100}){1,100}",
    "[ab]{64}",
)


@pytest.mark.parametrize("pattern", LARGE)
async def test_repetitions_that_do_not_are_taken(compiler: GrammarCompiler, pattern: str) -> None:
    """And a long answer can be followed, each step within a moment."""
    made = await outcome(compiler, regex(pattern))
    assert isinstance(made, CompiledGrammar), made
    state, rng = made.start(), random.Random(0)
    state.take([])
    worst = 0.0
    for _ in range(600):
        began = thread_time()
        token = rng.choice(sorted(allowed(state) - TOKENIZER.eos_ids) or [TOKENIZER.vocab_size])
        if token == TOKENIZER.vocab_size:
            break
        state.take([token])
        worst = max(worst, thread_time() - began)
        assert state.fault is None
    assert worst < 0.2


async def test_a_grammar_that_takes_too_long_is_killed() -> None:
    impatient = GrammarCompiler(VOCAB, GrammarChecks(seconds=0.01))
    error = await outcome(impatient, HOSTILE["alternatives"])
    await impatient.close()
    assert "takes more than 0.01 seconds" in str(error)


async def test_equal_grammars_are_compiled_once(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def counting(*args: Any) -> Any:
        nonlocal made
        made += 1
        return Matcher(*args)

    monkeypatch.setattr("manylora.server.grammars.compiler.Matcher", counting)
    specs = [GrammarSpec.regex("[ab]", param=f"p{i}") for i in range(8)]
    grammars = await asyncio.gather(*(compiler.compile(spec, TOKENIZER) for spec in specs))
    again = await compiler.compile(specs[0], TOKENIZER)
    assert made == 1
    assert [each.param for each in (*grammars, again)] == [*(f"p{i}" for i in range(8)), "p0"]
    await compiler.compile(SMALL, TOKENIZER)
    assert made == 2


async def test_too_many_at_a_time(compiler: GrammarCompiler) -> None:
    results = await asyncio.gather(
        *(compiler.compile(GrammarSpec.regex(f"a{i}", param="p"), TOKENIZER) for i in range(80)),
        return_exceptions=True,
    )
    full = [each for each in results if isinstance(each, QueueFull)]
    assert len(full) == 80 - 64
    assert all(isinstance(each, CompiledGrammar) for each in results if each not in full)


async def test_whoever_leaves_keeps_nobody_else_waiting(compiler: GrammarCompiler) -> None:
    first = asyncio.ensure_future(compiler.compile(SMALL, TOKENIZER))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(compiler.compile(SMALL, TOKENIZER))
    await asyncio.sleep(0)
    first.cancel()
    assert takes(await second, "7", TOKENIZER)
    left = asyncio.ensure_future(compiler.compile(GrammarSpec.regex("(", param="p"), TOKENIZER))
    await asyncio.sleep(0)
    left.cancel()  # nobody looks at the refusal
    assert takes(await compiler.compile(GrammarSpec.regex("y", param="p"), TOKENIZER), "y", TOKENIZER)


async def test_the_process_may_die(compiler: GrammarCompiler) -> None:
    await compiler.compile(SMALL, TOKENIZER)
    running = compiler.checks.forks.running
    assert running is not None
    running[0].kill()
    running[0].wait()
    assert takes(await compiler.compile(GrammarSpec.regex("z", param="p"), TOKENIZER), "z", TOKENIZER)


def test_texts_are_values() -> None:
    one = GrammarSpec.json_schema({"type": "integer"}, param="a")
    assert one == GrammarSpec.json_schema({"type": "integer"}, param="b")
    assert hash(one) == hash(GrammarSpec.json_schema({"type": "integer"}, param="b"))
    assert one != GrammarSpec.json_schema({"type": "number"}, param="a")
    assert json.loads(one.text) == {"type": "integer"}


async def test_a_pattern_that_explodes_in_a_schema(compiler: GrammarCompiler) -> None:
    pattern = schema({"type": "string", "pattern": "^((a|b|ab){1,1000}(ba|a){1,1000}){1,1000}$"})
    error = await outcome(compiler, pattern)
    assert isinstance(error, RequestError)
    assert (error.param, error.code) == ("p", "invalid_grammar")
    assert "repeats too much" in str(error)
