"""What is in the data: the table shown before training, and one example with its learned part marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.prepare import Part, Prepared
from manylora.adapters.training.data.template import (
    IGNORED,
    Encoded,
    EncodedPair,
    EncodedText,
    EncodedTexts,
)

BINS = 8
LEARNED = "bold green"


@dataclass(frozen=True, slots=True)
class PartSummary:
    """Counts of one side of the data; lengths are in tokens."""

    rows: int
    sequences: int
    tokens: int
    supervised: int
    shortest: int
    median: int
    longest: int
    histogram: tuple[tuple[int, int], ...]  # (longest length of the bin, sequences in it)
    cut_sequences: int
    cut_tokens: int
    dropped: int


def summarize(part: Part) -> PartSummary:
    """The counts of ``part``, which has at least one sequence."""
    lengths = sorted(_tokens(item) for item in part.sequences)
    return PartSummary(
        rows=len(part.rows),
        sequences=len(lengths),
        tokens=sum(lengths),
        supervised=sum(_supervised(item) for item in part.sequences),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        histogram=histogram(lengths),
        cut_sequences=part.cut_sequences,
        cut_tokens=part.cut_tokens,
        dropped=part.dropped,
    )


def histogram(lengths: Sequence[int], bins: int = BINS) -> tuple[tuple[int, int], ...]:
    """Counts in ``bins`` bins of equal width: (longest length that belongs to the bin, count)."""
    width = -(-max(lengths) // bins)
    counts = [0] * bins
    for length in lengths:
        counts[max(0, -(-length // width) - 1)] += 1
    return tuple(((index + 1) * width, count) for index, count in enumerate(counts))


def summary_table(prepared: Prepared) -> RenderableType:
    """Files with their formats, and the counts of both sides."""
    files = Table("file", "format", "rows", "what is learned", title="Data", title_justify="left")
    for parsed in prepared.files:
        assert parsed.format is not None, "a file without a format is a fault"
        files.add_row(
            parsed.file.path.name, parsed.format.name, f"{len(parsed.rows):,}", parsed.format.becomes
        )
    counts = Table("", "train", "eval", title_justify="left")
    sides = [summarize(prepared.train)] + ([summarize(prepared.eval)] if prepared.eval else [])
    for name, read in _LINES:
        counts.add_row(name, *(read(side) for side in sides))
    return Group(files, counts)


_LINES: tuple[tuple[str, Callable[[PartSummary], str]], ...] = (
    ("rows", lambda s: f"{s.rows:,}"),
    ("sequences", lambda s: f"{s.sequences:,}"),
    ("tokens", lambda s: f"{s.tokens:,}"),
    ("learned tokens", lambda s: f"{s.supervised:,} ({s.supervised / max(1, s.tokens):.0%})"),
    ("length: shortest, median, longest", lambda s: f"{s.shortest:,}, {s.median:,}, {s.longest:,}"),
    ("cut to max_length", lambda s: f"{s.cut_sequences:,} ({s.cut_tokens:,} tokens lost)"),
    ("dropped, nothing left to learn", lambda s: f"{s.dropped:,}"),
    ("lengths", lambda s: bars(s.histogram)),
)


def bars(counts: Sequence[tuple[int, int]]) -> str:
    """A histogram as lines of text."""
    most = max(count for _, count in counts)
    return "\n".join(f"≤{edge:>6,} {'█' * round(12 * count / most):<12} {count:,}" for edge, count in counts)


def example(prepared: Prepared, tokenizer: Any) -> Text:
    """The first training sequence as the model sees it; what is learned is marked."""
    item = prepared.train.sequences[0]
    text = Text(
        f"{item.origin.path.name}:{item.origin.line}, as the model sees it; learned parts are marked:\n\n"
    )
    sequence, belonging = example_parts(prepared, tokenizer)
    for shown, is_learned in sequence:
        text.append(f"⟦{shown}⟧" if is_learned else shown, LEARNED if is_learned else "")
    for shown, is_learned in belonging:
        text.append(shown, LEARNED if is_learned else "")
    return text


ExampleParts = list[tuple[str, bool]]  # texts, and whether each is learned


def example_parts(prepared: Prepared, tokenizer: Any) -> tuple[ExampleParts, ExampleParts]:
    """The first training sequence as the model sees it, and what belongs to it: a class, other texts."""
    item = prepared.train.sequences[0]

    def read(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    sequence = [(read(ids), is_learned) for ids, is_learned in _runs(item)]
    if isinstance(item, EncodedText):
        return sequence, [(f"\n→ {prepared.classes[item.label]}", True)]
    if isinstance(item, EncodedTexts):
        signs = ["→" if item.score is None else f"cosine {item.score:g}:", *["≠"] * (len(item.texts) - 2)]
        return sequence, [
            (f"\n{sign} {read(ids)}", sign != "≠") for sign, ids in zip(signs, item.texts[1:], strict=True)
        ]
    return sequence, []


def show_data(prepared: Prepared, console: Console) -> None:
    """Print the warnings about the data, and the table of what is in it."""
    for warning in prepared.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(summary_table(prepared))


def show_example(prepared: Prepared, tokenizer: Any, console: Console) -> None:
    """Print one training row as the model sees it, with what is learned marked."""
    console.print(example(prepared, tokenizer), soft_wrap=True, highlight=False)


def _runs(item: Item) -> list[tuple[list[int], bool]]:
    """The sequence as runs of tokens that are learned or are not."""
    if isinstance(item, EncodedText):
        return [(item.input_ids, False)]
    if isinstance(item, EncodedTexts):
        return [(item.texts[0], False)]
    if isinstance(item, EncodedPair):
        return [(item.prompt_ids, False), (item.chosen_ids, True), (item.rejected_ids, False)]
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(item.input_ids, item.labels, strict=True):
        is_learned = label != IGNORED
        if not runs or runs[-1][1] != is_learned:
            runs.append(([], is_learned))
        runs[-1][0].append(token)
    return runs


def _tokens(item: Item) -> int:
    if isinstance(item, EncodedPair):
        return 2 * len(item.prompt_ids) + len(item.chosen_ids) + len(item.rejected_ids)
    if isinstance(item, EncodedTexts):
        return sum(map(len, item.texts))
    return len(item.input_ids)


def _supervised(item: Item) -> int:
    if isinstance(item, Encoded):
        return item.supervised
    if isinstance(item, EncodedTexts):
        return _tokens(item)
    return len(item.chosen_ids) + len(item.rejected_ids) if isinstance(item, EncodedPair) else 1
