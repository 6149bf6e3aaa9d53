"""Rows to sequences of token ids, whatever kind of row it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from manylora.adapters.errors import ChatTemplateError
from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.rows import (
    ChatRow,
    ContrastRow,
    Origin,
    PlainRow,
    PreferenceRow,
    Row,
    TextRow,
)
from manylora.adapters.training.data.template import Template


class Encoder:
    """Encodes rows, and counts those whose first turns the template refuses."""

    def __init__(self, template: Template, classes: Sequence[str], max_length: int) -> None:
        """``classes``: the labels in the head's order; ``max_length``: of the pieces of plain text."""
        self._template = template
        self._classes = classes
        self._max_length = max_length
        self.leads_dropped = 0  # rows that begin with the assistant, whose beginning was dropped
        self.without_lead: Origin | None = None  # the first of them

    def encode(self, row: Row) -> Sequence[Item]:
        """The sequences of ``row``.

        Raises:
            ChatTemplateError: the template rejects the messages or can't be trained with.
        """
        if isinstance(row, ChatRow):
            return self._conversation(row)
        if isinstance(row, TextRow):
            return [self._template.text_sequence(row)]
        if isinstance(row, PlainRow):
            return self._template.plain_sequences(row, self._max_length)
        if isinstance(row, PreferenceRow):
            return [self._template.pair(row)]
        if isinstance(row, ContrastRow):
            return self._template.contrasts(row)
        return [self._template.labelled(row, self._classes)]

    def _conversation(self, row: ChatRow) -> Sequence[Item]:
        try:
            return self._template.chat_sequences(row)
        except ChatTemplateError:
            shorter = _without_lead(row)
            if shorter is None:
                raise
        encoded = self._template.chat_sequences(shorter)
        self.leads_dropped += 1
        self.without_lead = self.without_lead or row.origin
        return encoded


def _without_lead(row: ChatRow) -> ChatRow | None:
    """``row`` without what the assistant says before anybody else; None where that leaves nothing new."""
    roles = [message["role"] for message in row.messages]
    start = 1 if roles[0] == "system" else 0
    end = next((i for i, role in enumerate(roles) if i >= start and role != "assistant"), len(roles))
    kept = [i for i in range(len(roles)) if not start <= i < end]
    weights = tuple(row.weights[i] for i in kept)
    if end == start or not any(weights):
        return None
    return replace(row, messages=tuple(row.messages[i] for i in kept), weights=weights)
