"""Answers that can't go on by what their request asks for."""

from __future__ import annotations

from manylora.server.engine.sequence import Delta, FinishReason, Sequence


def dead_end(sequence: Sequence) -> Delta | None:
    """What ends the answer if its request leaves no token to draw, or if that can't be told; else None."""
    grammar, mask = sequence.grammar, sequence.mask
    if grammar is not None and grammar.fault is not None:
        return _blaming(sequence, grammar.param, grammar.fault, "grammar_too_complex")
    if mask is None or not mask.is_empty:
        return None
    param = "bad_words" if sequence.params.allowed_tokens is None else "allowed_token_ids"
    among = "" if grammar is None else f" of those that {grammar.param!r} lets follow"
    error = f"no token is left{among} after {sequence.num_output_tokens} tokens of the answer"
    return _blaming(sequence, param, error, "no_token_left")


def _blaming(sequence: Sequence, param: str, error: str, code: str) -> Delta:
    return Delta(sequence.index, finish_reason=FinishReason.ERROR, error=error, param=param, code=code)
