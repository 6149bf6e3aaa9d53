"""From request fields to :class:`SamplingParams`: defaults, and the checks that span several fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from manylora.server.api.request.sampling_body import SamplingBody
from manylora.server.api.request.schemas import GenerationBody
from manylora.server.engine.sequence import SamplingParams
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.grammars.grammar import CompiledGrammar

T = TypeVar("T")


def check_fields(body: GenerationBody, max_model_len: int) -> None:
    """Refuse combinations that make no sense whatever the prompt.

    Raises:
        RequestError: naming the parameter to change.
    """
    n = _or(body.n, 1)
    if body.best_of is not None and body.best_of != n:
        raise RequestError(
            f"'best_of' is not supported unless it equals 'n' ({n})", "best_of", "unsupported_parameter"
        )
    if not (body.truncate_prompt_tokens is None and body.truncation_side is None):
        body.truncation(max_model_len)
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError("'prompt_logprobs' is not available in a stream", "prompt_logprobs")


def prompt_room(max_model_len: int, virtual_tokens: int, wanted: int | None, default: int) -> int:
    """How many tokens of the context a prompt may take whose answer has ``wanted`` tokens, else ``default``.

    ``virtual_tokens`` are those of a soft prompt.
    """
    return max_model_len - virtual_tokens - (default if wanted is None else wanted)


def answer_budget(
    prompt_tokens: int,
    wanted: int | None,
    max_model_len: int,
    names: tuple[str, str],
    *,
    default: int | None = None,
    virtual_tokens: int = 0,
) -> int:
    """How many tokens an answer may have: ``wanted``, else ``default`` as far as it fits, else all that fits.

    ``names`` are the parameters that hold the prompt and the wanted number, for the errors;
    ``virtual_tokens`` are those of a soft prompt, which stand before the prompt.

    Raises:
        RequestError: an empty prompt.
        ContextTooLong: the prompt leaves no room for an answer, or not enough for ``wanted``.
    """
    prompt_name, wanted_name = names
    room = max_model_len - virtual_tokens - prompt_tokens
    window = context_window(max_model_len, virtual_tokens)
    if prompt_tokens == 0:
        raise RequestError(f"'{prompt_name}' is empty: it must give at least one token", prompt_name)
    if room < 0 or (room == 0 and wanted != 0):
        raise ContextTooLong(
            f"{window} and the prompt has {prompt_tokens}, which leaves no room for an answer",
            prompt_name,
        )
    if wanted is None:
        return room if default is None else min(default, room)
    if wanted > room:
        raise ContextTooLong(
            f"{window}; the prompt has {prompt_tokens} and "
            f"'{wanted_name}' asks for {wanted}, which is {wanted - room} too many",
            wanted_name,
        )
    return wanted


def context_window(max_model_len: int, virtual_tokens: int) -> str:
    """The beginning of an error that tells how long the context is."""
    taken = f", of which {virtual_tokens} are the adapter's virtual tokens," if virtual_tokens else ""
    return f"The context window is {max_model_len} tokens{taken}"


def sampling_params(
    body: SamplingBody,
    *,
    max_tokens: int,
    vocab_size: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    shown_tokens: frozenset[int] = frozenset(),
    grammar: CompiledGrammar | None = None,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """The sampling parameters of one prompt's answers; ``bad_words`` as ``bad_word_ids`` tells them.

    Raises:
        RequestError: naming the parameter that is wrong.
    """
    min_tokens = _or(body.min_tokens, 0)
    if min_tokens > max_tokens:
        raise RequestError(
            f"'min_tokens' ({min_tokens}) exceeds the {max_tokens} tokens the answer may have", "min_tokens"
        )
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=0.0 if body.top_p == 0 else _or(body.temperature, 1.0),  # the likeliest alone is greedy
        top_p=1.0 if body.top_p is None or body.top_p == 0 else body.top_p,
        top_k=max(_or(body.top_k, 0), 0),  # -1 and 0 both mean off
        min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=_logit_bias(body.logit_bias, vocab_size),
        allowed_tokens=_allowed_tokens(body.allowed_token_ids, vocab_size),
        bad_words=bad_words,
        seed=body.seed,
        stop=() if body.stop is None else tuple(body.stop),
        stop_token_ids=_stop_token_ids(body.stop_token_ids, vocab_size),
        keep_stop=body.keeps_stop,
        ignore_eos=_or(body.ignore_eos, False),
        skip_special_tokens=_or(body.skip_special_tokens, True),
        spaces_between_added=_or(body.spaces_between_special_tokens, True),
        shown_tokens=shown_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def _or(value: T | None, default: T) -> T:
    """``default`` only for ``None``: 0, 0.0 and False are values."""
    return default if value is None else value


def _logit_bias(bias: Mapping[str, float] | None, vocab_size: int) -> dict[int, float]:
    if bias is None:
        return {}
    return {_token_id(key, vocab_size, "logit_bias"): value for key, value in bias.items()}


def _allowed_tokens(ids: list[int] | None, vocab_size: int) -> tuple[int, ...] | None:
    if ids is None:
        return None
    if max(ids) >= vocab_size:
        raise _no_token(str(max(ids)), vocab_size, "allowed_token_ids")
    return tuple(ids)


def _stop_token_ids(ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(_token_id(str(token), vocab_size, "stop_token_ids") for token in ids)


def _token_id(text: str, vocab_size: int, param: str) -> int:
    """``text`` as a token id of the vocabulary."""
    if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < vocab_size:
        return int(text)
    raise _no_token(text, vocab_size, param)


def _no_token(text: str, vocab_size: int, param: str) -> RequestError:
    return RequestError(
        f"'{param}': {text[:40]!r} is not a token id; ids go from 0 to {vocab_size - 1}", param
    )
