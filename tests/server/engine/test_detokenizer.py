"""Text out of tokens: whole characters, and never a piece of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from manylora.server.engine.answer_reader import AnswerReader
from manylora.server.engine.detokenizer import Detokenizer
from manylora.server.engine.sequence import FinishReason, ResolvedMix, SamplingParams, Sequence
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())
END = 258


def detokenizer(
    *stop: str, prompt: str = "", skip_special_tokens: bool = True, keep_stop: bool = False
) -> Detokenizer:
    ids = TOKENIZER.encode(prompt)
    return Detokenizer(
        TOKENIZER, ids, stop=stop, skip_special_tokens=skip_special_tokens, keep_stop=keep_stop
    )


def ids_of(content: bytes) -> list[int]:
    """One token per byte, whether or not they are text."""
    wanted = set(content)
    table = {TOKENIZER.token_bytes(t): t for t in range(256)}
    assert len(table) == 256
    assert wanted <= {key[0] for key in table}
    return [table[bytes([b])] for b in content]


def pieces(made: Detokenizer, ids: list[int]) -> tuple[list[str], str | None]:
    """What comes out after each token and at the end; ends early at a stop string."""
    out = []
    for token in ids:
        text, matched = made.push(token)
        out.append(text)
        if matched is not None:
            return out, matched
    text, matched = made.flush()
    return [*out, text], matched


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=8), text=st.text(max_size=40))
@example(prompt="é", text="\U0001f469\u200d\U0001f467 日本語 \u202e e\u0301 \x00 \ufffd\ufffd")
@example(prompt="", text="\ufffd")
def test_any_text_comes_out_whole(prompt: str, text: str) -> None:
    out, matched = pieces(detokenizer(prompt=prompt), TOKENIZER.encode(text))
    assert "".join(out) == text
    assert matched is None


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=40))
@example(content=b"\xff\xff\xff\xf0\x9f\x98\x80!")
@example(content=b"\xf0\x9f\x98\xf0\x9f\x98\xf0\x9f\x98\xf0\x9f\x98\x80")
@example(content=b"\x80" * 30 + "é".encode())
def test_any_bytes_come_out_as_if_decoded_at_once(content: bytes) -> None:
    out, _ = pieces(detokenizer(), ids_of(content))
    assert "".join(out) == content.decode(errors="replace")


def test_characters_are_held_until_they_are_complete() -> None:
    out, _ = pieces(detokenizer(), TOKENIZER.encode("a日😀b"))
    assert out == ["a", "", "", "日", "", "", "", "😀", "b", ""]


def test_an_endless_run_of_broken_bytes_is_not_held_back() -> None:
    out, _ = pieces(detokenizer(), ids_of(b"\xff" * 50))
    assert "".join(out) == "\ufffd" * 50
    assert max(map(len, out)) <= 4


def test_an_answer_can_end_inside_a_character() -> None:
    out, _ = pieces(detokenizer(), TOKENIZER.encode("ab😀")[:-1])
    assert out == ["a", "b", "", "", "", "\ufffd"]


def test_an_unfinished_character_of_the_prompt_is_not_repeated() -> None:
    ids = TOKENIZER.encode("x😀")
    made = Detokenizer(TOKENIZER, ids[:3], stop=(), skip_special_tokens=True)
    out, _ = pieces(made, [*ids[3:], *TOKENIZER.encode("ok")])
    assert "".join(out).endswith("ok")
    assert "x" not in "".join(out)


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a<|im_end|>b")])
def test_special_tokens(skip: bool, text: str) -> None:
    (a, b) = TOKENIZER.encode("ab")
    out, _ = pieces(detokenizer(skip_special_tokens=skip), [a, END, b])
    assert "".join(out) == text


@pytest.mark.parametrize(
    ("text", "stop", "expected", "matched"),
    [
        ("hello world", ("wor",), "hello ", "wor"),
        ("hello world", ("xyz",), "hello world", None),
        ("hello world", ("h",), "", "h"),
        ("hello world", ("world",), "hello ", "world"),
        ("hello world", ("world!",), "hello world", None),
        ("hello world", ("world", "lo w"), "hel", "lo w"),
        ("hello world", ("o world", "orld"), "hell", "o world"),
        ("hello world", ("hello worlds", "orl"), "hello w", "orl"),
        ("aaab", ("aab",), "a", "aab"),
        ("ababac", ("abac",), "ab", "abac"),
        ("x\n\ny", ("\n\n",), "x", "\n\n"),
        ("a日本b", ("本",), "a日", "本"),
        ("a日b", ("日本",), "a日b", None),
        ("12345", ("5", "34", "123", "45"), "", "123"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str, matched: str | None) -> None:
    out, found = pieces(detokenizer(*stop), TOKENIZER.encode(text))
    assert ("".join(out), found) == (expected, matched)


def test_text_that_could_become_a_stop_string_waits() -> None:
    out, _ = pieces(detokenizer("</s>"), TOKENIZER.encode("a</b</"))
    assert out == ["a", "", "", "</b", "", "", "</"]


def test_the_prompt_is_no_part_of_a_stop_string() -> None:
    out, matched = pieces(detokenizer("ab", prompt="a"), TOKENIZER.encode("bc"))
    assert ("".join(out), matched) == ("bc", None)


def test_a_stop_string_can_complete_in_the_last_character() -> None:
    ids = TOKENIZER.encode("stop\ufffd")[:-1]  # the last character is cut, and reads as U+FFFD
    out, matched = pieces(detokenizer("p\ufffd"), ids)
    assert ("".join(out), matched) == ("sto", "p\ufffd")


def test_below_the_minimum_a_stop_string_is_text() -> None:
    made = detokenizer("b")
    (a, b, c) = TOKENIZER.encode("abc")
    assert made.push(a, stoppable=False) == ("a", None)
    assert made.push(b, stoppable=False) == ("b", None)
    assert made.push(c) == ("c", None)
    assert made.push(b) == ("", "b")


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab日", max_size=24), stop=st.lists(st.text("ab日", min_size=1, max_size=4), max_size=4))
def test_a_stop_string_that_is_kept_ends_the_text(text: str, stop: list[str]) -> None:
    """Wherever the answer would end without it, at the same token."""
    without, matched = pieces(detokenizer(*stop), TOKENIZER.encode(text))
    kept, same = pieces(detokenizer(*stop, keep_stop=True), TOKENIZER.encode(text))
    assert (same, len(kept)) == (matched, len(without))
    assert "".join(kept) == "".join(without) + (matched or "")


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab日", max_size=24), stop=st.lists(st.text("ab日", min_size=1, max_size=4), max_size=4))
def test_the_answer_ends_where_the_first_stop_string_begins(text: str, stop: list[str]) -> None:
    out, matched = pieces(detokenizer(*stop), TOKENIZER.encode(text))
    # Of several, the one that completes first ends the answer; the earliest beginning among those.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    if not ends:
        assert ("".join(out), matched) == (text, None)
        return
    first = min(ends)[0]
    assert "".join(out) == text[: min(begin for end, begin in ends if end == first)]
    assert matched in stop
    for count in range(len(out)):
        so_far = "".join(out[:count])
        assert not any(s in so_far for s in stop)


def fallback_tokenizer() -> Tokenizer:
    """A SentencePiece-like vocabulary: a few words with leading spaces, and one token per byte."""
    vocabulary = {"<unk>": 0, "\u2581hello": 1, "\u2581world": 2}
    vocabulary |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = type(byte_tokenizer())(tokenizer_object=backend)
    return Tokenizer(fast)


@pytest.mark.parametrize(
    "middle", ["", "é", "日本語", "\U0001f469\u200d\U0001f467", "a\U0001f469\u200d\U0001f467日é\U0001f469b"]
)
def test_byte_fallback_and_leading_spaces(middle: str) -> None:
    tokenizer = fallback_tokenizer()
    ids = [1, *(3 + b for b in middle.encode()), 2, 1]
    made = Detokenizer(tokenizer, [1], stop=(), skip_special_tokens=True)
    out, _ = pieces(made, ids)
    assert "".join(out) == f" hello{middle} world hello"


def spaced_tokenizer() -> Tokenizer:
    """Words without a decoder, which are written with blanks between them, and two added tokens."""
    backend = Backend(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    backend.add_special_tokens(["<a>", "<b>"])
    return Tokenizer(type(byte_tokenizer())(tokenizer_object=backend))


@pytest.mark.parametrize(
    ("skip", "spaces", "text"),
    [
        (False, True, "<a> <b> hello <a> <a> <b> world <b>"),
        (False, False, "<a><b> hello <a><a><b> world <b>"),
        (True, False, "hello world"),
    ],
)
def test_blanks_between_added_tokens(skip: bool, spaces: bool, text: str) -> None:
    """As vLLM 0.32 writes them: with ``spaces`` false those blanks go, and no others."""
    tokenizer = spaced_tokenizer()
    params = SamplingParams(skip_special_tokens=skip, spaces_between_added=spaces, max_tokens=20)
    sequence = Sequence(1, (1,), params, ResolvedMix())
    reader = AnswerReader(tokenizer, Metrics().requests)
    reader.open(sequence)
    ids = [3, 4, 1, 3, 3, 4, 2, 4]
    said = [reader.text(sequence, token, None)[0] for token in ids]
    said.append(reader.text(sequence, 1, FinishReason.LENGTH)[0])
    assert "".join(said).strip() == f"{text} hello"
