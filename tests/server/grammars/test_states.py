"""Where an answer stands in its grammar: ends, stop tokens, widths, limits that answers share."""

from __future__ import annotations

import pytest

from manylora.server.grammars import grammar as grammar_module
from manylora.server.grammars.grammar import CompiledGrammar, GrammarState
from manylora.server.grammars.spec import GrammarSpec
from tests.support.grammars import allowed, compiled, grammar, tokenizer_of_bytes

TOKENIZER = tokenizer_of_bytes()
END = 258
A, B = TOKENIZER.encode("ab")


@pytest.fixture(scope="module")
def ab() -> CompiledGrammar:
    """One a, then as many b as you like, up to three."""
    return grammar(GrammarSpec.regex("ab{0,3}", param="p"))


def at(made: CompiledGrammar, tokens: list[int], **options: object) -> GrammarState:
    state = made.start(**options)  # type: ignore[arg-type]
    state.take([])
    for token in tokens:
        state.take([token])
    return state


def test_ends(ab: CompiledGrammar) -> None:
    assert allowed(at(ab, [])) == {A}
    assert allowed(at(ab, [A])) == {B, END}
    assert not at(ab, [A]).only_ends
    over = at(ab, [A, B, B, B])
    assert allowed(over) == {END}
    assert over.only_ends


def test_several_tokens_at_a_time(ab: CompiledGrammar) -> None:
    state = ab.start()
    assert not state.is_filled
    state.take([A, B])
    assert state.is_filled
    assert state.num_taken == 2
    assert allowed(state) == {B, END}


def test_stop_tokens_end_where_the_grammar_may(ab: CompiledGrammar) -> None:
    stop = {"stop_token_ids": (256, B)}
    assert allowed(at(ab, [], **stop)) == {A}
    begun = at(ab, [A], **stop)
    assert allowed(begun) == {B, 256, END}
    assert begun.only_ends  # b would end it as well
    over = at(ab, [A, B, B, B], stop_token_ids=(256,))
    assert allowed(over) == {256, END}
    assert over.only_ends


def test_answers_that_ignore_their_end_go_on_as_long_as_they_can(ab: CompiledGrammar) -> None:
    assert allowed(at(ab, [A], ignore_eos=True)) == {B}
    assert allowed(at(ab, [A, B, B, B], ignore_eos=True)) == {END}


def test_words_for_wider_rows(ab: CompiledGrammar) -> None:
    assert len(at(ab, []).allowed) == 288 // 32
    wide = at(ab, [A], own_tokens=1000)
    assert len(wide.allowed) == 32
    assert allowed(wide) == {B, END}


def test_tokens_that_the_head_does_not_have_do_not_follow() -> None:
    (made,) = compiled([GrammarSpec.regex("a", param="p")], width=100)
    assert isinstance(made, CompiledGrammar)
    assert made.matcher.vocabulary.num_tokens == TOKENIZER.vocab_size
    state = at(made, [A])
    assert state.only_ends


def test_a_token_that_may_not_follow_is_a_fault_of_this_answer_only(ab: CompiledGrammar) -> None:
    state, other = at(ab, [A]), at(ab, [A])
    state.take([A])
    assert state.fault is not None
    assert len(allowed(state)) == 288  # something can be drawn; it is thrown away
    other.take([B])
    assert other.fault is None
    assert at(ab, [A, B]).fault is None


def test_a_limit_that_answers_share_is_no_fault_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the common lexer has learned all that it may, an answer goes on with one of its own."""
    monkeypatch.setitem(grammar_module.LIMITS, "max_lexer_states", 60)
    words = [letter * 25 + "." for letter in "abcdef"]  # each has lexer states of its own
    made = grammar(GrammarSpec.choice(words, param="p"))
    assert not made.matcher.is_worn
    for word in words:
        state = at(made, TOKENIZER.encode(word))
        assert state.fault is None
        assert state.only_ends
    assert made.matcher.is_worn


def test_an_end_is_needed() -> None:
    from manylora.server.errors import RequestError

    class Endless:
        eos_ids: frozenset[int] = frozenset()
        vocab_size = 259
        control_tokens: dict[int, str] = {}  # noqa: RUF012

    (error,) = compiled([GrammarSpec.regex("a", param="p")], Endless())  # type: ignore[arg-type]
    assert isinstance(error, RequestError)
    assert "no token that ends" in str(error)
