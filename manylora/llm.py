"""The engine in this process, for programs: the same application as ``manylora serve``, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from transformers.utils import logging as transformers_logging

from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.options.loading import unknown_keys
from manylora.adapters.progress_bars import progress_bars
from manylora.answers import Completion, Score, chat_completion, completion
from manylora.in_process import InProcessServer
from manylora.server.assembly import build_service
from manylora.server.errors import ConfigError, RequestError
from manylora.server.options.loading import load_settings
from manylora.server.options.settings import Settings

T = TypeVar("T")

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A base model with adapters, for batches in this process.

    Prompts of one call, and of calls from several threads, run together in the engine's batch. Every call
    names its model as the HTTP API does: the base, an adapter, a revision, an alias, or a weighted mix.

        with LLM("smollm2-135m", adapters={"pirate": "examples/adapters/pirate"}) as llm:
            for answer in llm.generate(["The sea is"], model="pirate*0.6", max_tokens=16):
                print(answer.text)
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        adapters: Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> None:
        """Load the base model, check the adapters, and start the engine.

        Args:
            model: a name that ``manylora pull`` knows, a Hub id or a directory.
            adapters: PEFT directories by the name they are asked for.
            options: any option of ``manylora serve``, as docs/configuration.md spells it in YAML. Options of
                HTTP mean nothing here.

        Raises:
            ConfigError: an option or an adapter can't be used; says which, and every reason.
            ModelRefused: the model can't be served correctly.
            BaseModelError: the model can't be found.
        """
        faults = unknown_keys(options, Settings, str)
        if faults:
            raise ConfigError("\n".join(faults))
        flags = {
            "model": model,
            "adapter": dict(adapters or {}),
            **options,
            "api_key": [],
            "admin_api_key": [],
        }
        settings = load_settings(flags)
        directory = resolve_model(settings.model, settings.data_dir, progress_bars(passing=True))
        with _transformers_quiet():
            self._service = build_service(settings, directory)
        self._base = self._service.model_name
        self._server = InProcessServer(self._service)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and free its memory. Calling it again does nothing."""
        self._server.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        model: str | None = None,
        progress: bool = True,
        **parameters: Any,
    ) -> list[Completion]:
        """Continue texts.

        Args:
            prompts: texts or lists of token ids.
            model: what answers; by default the base model.
            progress: whether a bar shows on a terminal how far it is.
            parameters: any other field of ``POST /v1/completions``: ``max_tokens`` (16 by default),
                ``temperature``, ``top_p``, ``seed``, ``stop``, ``n``, ``logprobs``, ….

        Returns:
            One completion for each prompt, in their order.

        Raises:
            RequestError: a parameter, a prompt or the model is not right; ``param`` says which.
        """
        items: Sequence[Any] = [prompts] if isinstance(prompts, str) or _is_token_ids(prompts) else prompts
        bodies = [{"prompt": _plain(prompt), **parameters} for prompt in items]
        return self._ask("/v1/completions", bodies, model, progress, completion)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        model: str | None = None,
        progress: bool = True,
        **parameters: Any,
    ) -> list[Completion]:
        """Answer conversations, by the chat template of the base or the adapter.

        Args:
            conversations: lists of messages, or one such list.
            model: what answers; by default the base model.
            progress: whether a bar shows on a terminal how far it is.
            parameters: any other field of ``POST /v1/chat/completions``.

        Returns:
            One completion for each conversation, in their order.

        Raises:
            RequestError: a parameter, a message or the model is not right; ``param`` says which.
        """
        one = bool(conversations) and isinstance(conversations[0], Mapping)
        items: Sequence[Any] = [conversations] if one else conversations
        bodies = [{"messages": [dict(m) for m in messages], **parameters} for messages in items]
        return self._ask("/v1/chat/completions", bodies, model, progress, chat_completion)

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        model: str | None = None,
        progress: bool = True,
    ) -> list[Score]:
        """Tell how likely a model finds each completion after its prompt.

        Args:
            prompts: as many as completions.
            completions: tokenized apart from their prompts, and appended to them.
            model: what judges; by default the base model.
            progress: whether a bar shows on a terminal how far it is.

        Raises:
            ValueError: not as many prompts as completions.
            RequestError: a text is empty or too long, or the model does not exist.
        """
        pairs = list(zip(prompts, completions, strict=True))

        async def score_one(body: Mapping[str, Any]) -> Score:
            before = await self._tokens(body["prompt"], model, add_special_tokens=True)
            after = await self._tokens(body["completion"], model, add_special_tokens=False)
            if not after:
                raise RequestError("'completion' is empty: it must give at least one token", "completion")
            answer = await self._server.post(
                "/v1/completions",
                {
                    **self._named(model),
                    "prompt": before + after,
                    "max_tokens": 0,
                    "echo": True,
                    "logprobs": 0,
                },
            )
            found = answer["choices"][0]["logprobs"]
            logprobs = tuple(found["token_logprobs"][len(before) :])
            return Score(sum(logprobs), logprobs, tuple(found["tokens"][len(before) :]), answer["model"])

        bodies = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
        return self._server.run(self._together(score_one, bodies, progress))

    def compare(self, targets: Sequence[str], **parameters: Any) -> dict[str, Any]:
        """Compare what several models answer, and how they judge one another's answers token by token.

        Args:
            targets: two or more models, as other calls name them.
            parameters: any other field of ``POST /v1/compare``, such as ``prompt`` or ``messages``.

        Returns:
            The comparison, as docs/compare.md describes it.

        Raises:
            RequestError: a parameter or a target is not right; ``param`` says which.
        """
        return self._server.run(self._server.post("/v1/compare", {"targets": list(targets), **parameters}))

    def load(self, name: str, directory: str | Path, *, replace: bool = False) -> str:
        """Load the adapter in ``directory`` as ``name``; returns its revision.

        Raises:
            AdapterError: it can't be served, or the name is taken and not to be replaced.
        """
        loading = self._service.adapters.admin.load(name, Path(directory), replace=replace)
        return self._server.run(loading).digest

    def unload(self, name: str) -> None:
        """Forget ``name`` and free what it took, once nothing runs with it.

        Raises:
            AdapterNotFound: there is no such adapter.
        """
        self._server.run(self._service.adapters.deletions.delete(name))

    @property
    def adapters(self) -> list[str]:
        """The names that can be asked for, beside the base model's."""
        return sorted(adapter.name for adapter in self._service.adapters.views.serving())

    def _ask(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        model: str | None,
        progress: bool,
        read: Callable[[Mapping[str, Any]], T],
    ) -> list[T]:
        async def ask_one(body: Mapping[str, Any]) -> T:
            return read(await self._server.post(path, {**self._named(model), **body}))

        return self._server.run(self._together(ask_one, bodies, progress))

    async def _together(
        self,
        ask: Callable[[Mapping[str, Any]], Awaitable[T]],
        bodies: Sequence[Mapping[str, Any]],
        progress: bool,
    ) -> list[T]:
        """All results in order, as many at a time as the engine may take. The first error ends the others."""
        at_once = asyncio.Semaphore(self._service.limits.max_num_seqs)
        with progress_bars(passing=True) as bars:
            task = bars.add_task("Generating", total=len(bodies), visible=progress)

            async def one(body: Mapping[str, Any]) -> T:
                async with at_once:
                    result = await ask(body)
                bars.advance(task)
                return result

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(body)) for body in bodies]
        return [done.result() for done in tasks]

    async def _tokens(self, text: str, model: str | None, *, add_special_tokens: bool) -> list[int]:
        body = {**self._named(model), "prompt": text, "add_special_tokens": add_special_tokens}
        found: list[int] = (await self._server.post("/tokenize", body))["tokens"]
        return found

    def _named(self, model: str | None) -> dict[str, str]:
        return {"model": self._base if model is None else model}


@contextmanager
def _transformers_quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which would be drawn for every load."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _is_token_ids(prompts: Any) -> bool:
    return not isinstance(prompts, str) and bool(prompts) and isinstance(prompts[0], int)


def _plain(prompt: Prompt) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)
