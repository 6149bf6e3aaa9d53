"""What is asked to see how a run goes: the prompts of rows, with the answers that they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.prepare import Prepared
from manylora.adapters.training.data.rows import ChatRow, Messages, PreferenceRow, Row, TextRow
from manylora.adapters.training.data.template import IGNORED, Encoded, EncodedPair


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question, as ids and as it is shown."""

    text: str
    ids: list[int]
    expected: str | None = None  # what the row answers; None: it is of no row
    line: int | None = None  # of the row, in its file


def asked(item: Item) -> tuple[list[int], list[int]]:
    """The prompt of the last learned answer of a sequence, and that answer.

    Of a text that is learned from its beginning the prompt is empty.
    """
    if isinstance(item, EncodedPair):
        return item.prompt_ids, item.chosen_ids
    assert isinstance(item, Encoded), "a classifier answers nothing"
    end = max(index for index, label in enumerate(item.labels) if label != IGNORED) + 1
    start = end
    while start > 0 and item.labels[start - 1] != IGNORED:
        start -= 1
    return item.input_ids[:start], item.input_ids[start:end]


def row_prompts(
    prepared: Prepared, count: int, longest: int | None, decode: Callable[..., str]
) -> list[Prompt]:
    """The last questions of the first ``count`` held-out rows, or of training rows where none are held out.

    Rows that ask nothing, or more than ``longest`` tokens, are passed over.
    """
    part = prepared.train if prepared.eval is None else prepared.eval
    last = {item.origin: item for item in part.sequences}  # of each row
    found: list[Prompt] = []
    for row in part.rows:
        if len(found) == count:
            break
        item = last.get(row.origin)
        if item is None:
            continue
        ids, answer = asked(item)
        if ids and (longest is None or len(ids) <= longest):
            text = _question(row)
            shown = decode(ids, skip_special_tokens=False) if text is None else text
            found.append(Prompt(shown, ids, decode(answer, skip_special_tokens=True), row.origin.line))
    return found


def _question(row: Row) -> str | None:
    """The text that is answered last, where it is one text."""
    if isinstance(row, TextRow):
        return row.prompt
    before: Messages = ()
    if isinstance(row, PreferenceRow):
        before = row.prompt
    elif isinstance(row, ChatRow):
        learned = [index for index, weight in enumerate(row.weights) if weight]
        before = row.messages[: learned[-1]] if learned else ()
    content = before[-1].get("content") if before else None
    return content if isinstance(content, str) else None


def shown_prompts(prompts: Sequence[str], ids: Sequence[list[int]]) -> list[Prompt]:
    """Prompts that were given, which are of no row."""
    return [Prompt(text, own) for text, own in zip(prompts, ids, strict=True)]
