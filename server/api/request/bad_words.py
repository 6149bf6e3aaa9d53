"""Words that answers may not contain, as the tokens that spell them."""

from __future__ import annotations

from collections.abc import Sequence

from manylora.server.model.text.conventions import TextConventions, off_loop

Ids = tuple[int, ...]


async def bad_word_ids(conventions: TextConventions, words: Sequence[str] | None) -> tuple[Ids, ...]:
    """The sequences of tokens that spell ``words``, at the beginning of a text and behind a blank.

    What vLLM does, but for one case: it leaves the second spelling out where that has another number of
    tokens. Blanks that a word begins with do not count. Control tokens spelled in words are such.
    """
    if not words:
        return ()
    return await off_loop(sum(map(len, words)), lambda: _spelled(conventions, words))


def _spelled(conventions: TextConventions, words: Sequence[str]) -> tuple[Ids, ...]:
    encode = conventions.tokenizer.encode
    texts = [text for word in words for text in _forms(word)]
    spelled = (tuple(encode(text, add_special_tokens=False)) for text in texts)
    return tuple(dict.fromkeys(ids for ids in spelled if ids))


def _forms(word: str) -> tuple[str, ...]:
    bare = word.lstrip()
    return (bare, f" {bare}") if bare else (word,)
