"""The administrative API of a running server, as methods of one object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from manylora.server.client.connection import Answer, Connection, adapter_path, alias_path, given
from manylora.server.client.errors import Refused, Unreachable
from manylora.server.client.jobs import JobClient
from manylora.server.client.publishing import (
    Publishing,
    Working,
    check_published,
    ended,
    given_at,
    publish,
    published,
)
from manylora.server.client.tenants import TenantClient

_MAX_PAGE = 1000  # adapters in one answer of the server
_SHARD_BYTES = 2 << 30


def _ignore(*_: object) -> None:
    """Takes progress where nobody asked for it."""


class Client:
    """Manages the adapters of the server at a URL; use it in a ``with`` block, in one thread at a time.

    Answers are the JSON objects that docs/api.md describes. Names are sent as they are: the server says
    what is wrong with them. Every method that asks the server may raise

    - :class:`~manylora.server.client.errors.Unreachable`: nothing answers at the URL, or what answers
      is no manylora server;
    - :class:`~manylora.server.client.errors.Refused`: the server said no, with its status and code.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: of the server; it may end in /v1, as OpenAI's clients have it.
            key: the API key, where the server asks for one; managing adapters takes one that may.

        Raises:
            Unusable: ``url`` is not the URL of an HTTP server.
        """
        self._connection = Connection(url, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._connection.close()

    @property
    def url(self) -> str:
        """The server's address, without /v1."""
        return self._connection.url

    # --- the server

    def version(self) -> Answer:
        """What is running: version, model, decoder, kernels, dtype and device."""
        found: Answer = self._connection.get("/version")
        return found

    def models(self) -> Sequence[Answer]:
        """What can be asked for: the base model first, then adapters and aliases."""
        found: Sequence[Answer] = self._connection.get("/v1/models")["data"]
        return found

    @property
    def jobs(self) -> JobClient:
        """Fine-tuning jobs."""
        return JobClient(self._connection)

    @property
    def tenants(self) -> TenantClient:
        """Who shares the server, and their keys."""
        return TenantClient(self._connection)

    # --- adapters

    def list(
        self,
        prefix: str | None = None,
        *,
        tag: str | None = None,
        state: str | None = None,
        resident: bool | None = None,
        limit: int | None = None,
    ) -> Iterator[Answer]:
        """Adapters by name, fetched a page at a time as they are wanted.

        Args:
            prefix: only names that begin with this.
            tag: only adapters with this tag.
            state: only adapters in this state: loading, ready, draining or failed.
            resident: only adapters that are, or are not, on the device.
            limit: at most so many.
        """
        page = None if limit is None else min(limit, _MAX_PAGE)
        found = self._connection.pages(
            "/v1/adapters", prefix=prefix, tag=tag, state=state, resident=resident, limit=page
        )
        return islice(found, limit)

    def show(self, name: str) -> Answer:
        """One adapter: its state, revisions, where its bytes are, what it has served."""
        found: Answer = self._connection.get(adapter_path(name))
        return found

    def find(self, name: str) -> Answer | None:
        """One adapter as :meth:`show` has it, or ``None`` if there is none of that name."""
        try:
            return self.show(name)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    def add(
        self,
        name: str,
        source: str | Path,
        *,
        tags: Sequence[str] = (),
        replace: bool = True,
        wait: bool = True,
        on_server: bool = False,
        subfolder: str = "",
        progress: Publishing = _ignore,
    ) -> Answer:
        """Publish an adapter, or a new revision of one, and return it.

        Args:
            name: what requests will call it.
            source: a PEFT directory or a .tar, .tar.gz or .zip of one on this machine, which is sent; or a
                text such as ``hf://org/repository`` or ``s3://bucket/prefix``, which the server fetches.
            tags: replace those the adapter has; without any they stay.
            replace: whether ``name`` may serve already.
            wait: return when the adapter serves; else as soon as the server has what it needs.
            on_server: ``source`` is a directory on the server's machine.
            subfolder: where in ``source`` the adapter is, such as ``checkpoint-400``.
            progress: called as bytes are sent and loaded.

        Raises:
            Unusable: there is no adapter at ``source``.
            Refused: the server does not take it, or it can't be served; then one fault a line.
        """
        offered = given_at(source, on_server=on_server, subfolder=subfolder)
        answer = publish(self._connection, name, offered, tags=tags, replace=replace, progress=progress)
        if wait:
            answer = published(self._connection, name, answer, progress)
        return check_published(name, answer)

    def delete(self, name: str, deadline: float = 30.0) -> Answer:
        """Delete an adapter: refuse new requests, let running ones finish, free what it took.

        Args:
            name: of the adapter.
            deadline: seconds that running requests get; what still runs then frees the rest when it ends.
        """
        return self._delete(adapter_path(name), deadline)

    def pin(self, name: str) -> Answer:
        """Bring an adapter to the device and keep it there."""
        return self._act(name, "pin")

    def unpin(self, name: str) -> Answer:
        """Let an adapter be evicted again."""
        return self._act(name, "unpin")

    def prefetch(self, name: str) -> Answer:
        """Bring an adapter in before it is asked for."""
        return self._act(name, "prefetch")

    def evict(self, name: str) -> Answer:
        """Take an adapter off the device; the next request brings it back."""
        return self._act(name, "evict")

    def rollback(self, name: str, revision: str | None = None) -> Answer:
        """Make an adapter serve an earlier revision again: by default the one before the current."""
        return self._act(name, "rollback", given({"revision": revision}))

    def share(self, name: str, tenants: Iterable[str]) -> Answer:
        """Let those tenants use an adapter besides the one whose it is, and no others; "*" is all."""
        shared: Answer = self._connection.patch(adapter_path(name), {"shared_with": list(tenants)})
        return shared

    def compose(
        self,
        name: str,
        members: Iterable[tuple[str, float]],
        *,
        method: str = "linear",
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        sign_method: str | None = None,
    ) -> Answer:
        """Compose an adapter out of others that the server has, and return it when it serves.

        Args:
            name: of the new adapter.
            members: adapters, revisions or aliases, each with its weight.
            method: linear (the exact sum), svd, ties, dare_linear, dare_ties or magnitude_prune.
            rank: of the result; for all methods but linear.
            density: share of each member's weights that ties, dare and prune keep.
            seed: of what DARE drops.
            sign_method: how ties elects signs: total or frequency.
        """
        recipe = {"rank": rank, "density": density, "seed": seed, "sign_method": sign_method}
        weights = [{"name": member, "weight": weight} for member, weight in members]
        answer = self._act(name, "compose", {"members": weights, "method": method, **given(recipe)})
        return check_published(name, published(self._connection, name, answer, _ignore))

    # --- aliases

    def aliases(self) -> Sequence[Answer]:
        """All aliases by name, each with the shares of its targets."""
        found: Sequence[Answer] = self._connection.get("/v1/aliases")["data"]
        return found

    def alias(self, name: str) -> Answer:
        """One alias, and what the answers of each of its targets have come to."""
        found: Answer = self._connection.get(alias_path(name))
        return found

    def set_alias(
        self, name: str, targets: str | Iterable[tuple[str, float]], *, reset: bool = False
    ) -> Answer:
        """Make a name stand for a model string, or for a split of several.

        Args:
            name: of the alias.
            targets: a model string, or several, each with its share.
            reset: count afresh, also for targets that stay.
        """
        body: dict[str, Any] = {"reset": True} if reset else {}
        if isinstance(targets, str):
            body["target"] = targets
        else:
            body["split"] = [{"target": target, "share": share} for target, share in targets]
        answer: Answer = self._connection.put(alias_path(name), body)
        return answer

    def delete_alias(self, name: str) -> Answer:
        """Delete an alias; its targets stay."""
        answer: Answer = self._connection.delete(alias_path(name))
        return answer

    # --- merged copies and exported models

    def merge(self, mix: str, *, progress: Working = _ignore) -> Answer:
        """Merge an adapter or a mix into a copy of the base, and return the copy when it is ready.

        Raises:
            Refused: the server can't build it.
        """
        path = adapter_path(mix, "merge")
        answer: Answer = self._connection.post(path, wait="false")
        answer = ended(self._connection, path, answer, progress)
        if answer["state"] == "failed":
            raise Refused(f"merging {mix} failed: {answer['error']}", 500, None)
        return answer

    def merged(self, mix: str) -> Answer:
        """The merged copy of an adapter or a mix: its state, size and measured error."""
        found: Answer = self._connection.get(adapter_path(mix, "merge"))
        return found

    def free_merged(self, mix: str, deadline: float = 30.0) -> Answer:
        """Free a merged copy once its running requests have ended, or after ``deadline`` seconds."""
        return self._delete(adapter_path(mix, "merge"), deadline)

    def export(
        self,
        mix: str,
        *,
        directory: str | None = None,
        dtype: str = "keep",
        max_shard_bytes: int = _SHARD_BYTES,
        verify: bool = True,
        wait: bool = True,
        progress: Working = _ignore,
    ) -> Answer:
        """Have the server write the base with an adapter or a mix merged in, as a model of its own.

        Args:
            mix: an adapter, a revision or a mix.
            directory: its name under the server's --export-root. Default: the adapter's name and revision.
            dtype: bf16, fp16, fp32, or keep: the base's own.
            max_shard_bytes: of one file, and of the memory that merging takes.
            verify: compare its logits before it is handed over.
            wait: return when it is written; else when the server has begun.
            progress: called while the server works.

        Raises:
            Refused: the server can't write it.
        """
        body = {"dtype": dtype, "verify": verify, "max_shard_size": max_shard_bytes}
        path = adapter_path(mix, "export")
        answer: Answer = self._connection.post(path, body | given({"directory": directory}), wait="false")
        if wait:
            progress(answer["state"], answer["progress"])
            answer = ended(self._connection, path, answer, progress)
        if answer["error"] is not None:
            raise Refused(answer["error"]["message"], 500, answer["error"]["code"])
        return answer

    def exported(self, mix: str) -> Answer:
        """The latest export of an adapter or a mix: its state, and what the comparison found."""
        found: Answer = self._connection.get(adapter_path(mix, "export"))
        return found

    def export_url(self, mix: str) -> str:
        """The URL of an export: GET tells how far it is, DELETE cancels it."""
        return self.url + adapter_path(mix, "export")

    def cancel_export(self, mix: str) -> Answer:
        """Cancel an export; what it has written goes."""
        answer: Answer = self._connection.delete(adapter_path(mix, "export"))
        return answer

    # --- answers

    def compare(
        self,
        targets: Sequence[str],
        *,
        prompt: Sequence[str] | None = None,
        conversations: Sequence[Sequence[Mapping[str, Any]]] | None = None,
        reference: int | str | Sequence[str] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        one_by_one: bool = False,
        progress: Working = _ignore,
    ) -> Answer:
        """Compare models side by side: their answers, and how far their probabilities are apart.

        Args:
            targets: two to eight model strings.
            prompt: texts that are continued as they are.
            conversations: lists of messages; either these or ``prompt``.
            reference: what is scored: the index of the target whose answer it is, a text, or one for each.
            max_tokens: of one answer.
            temperature: 0 is greedy.
            seed: of the answers.
            one_by_one: targets answer in turn, so that they do not slow each other.
            progress: called with what is being done and the share of the prompts that is done.
        """
        asked = {
            "targets": targets,
            "prompt": prompt,
            "conversations": conversations,
            "reference": reference,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "one_by_one": one_by_one,
        }
        result: Answer | None = None
        for event in self._connection.events("/v1/compare", given(asked)):
            if event.get("object") == "comparison":
                result = event
            else:
                progress(*_progress_of(event))
        if result is None:
            raise Unreachable(f"{self.url} broke off before the comparison was complete")
        return result

    def score(self, response_id: str, score: float) -> Answer:
        """Score an answer from 0 (worst) to 1; it counts for the adapter and the alias that gave it."""
        answer: Answer = self._connection.post("/v1/feedback", {"response_id": response_id, "score": score})
        return answer

    def _act(self, name: str, action: str, body: Mapping[str, Any] | None = None) -> Answer:
        answer: Answer = self._connection.post(adapter_path(name, action), body)
        return answer

    def _delete(self, path: str, deadline: float) -> Answer:
        answer: Answer = self._connection.delete(path, patience=deadline, deadline=deadline)
        return answer


def _progress_of(event: Answer) -> tuple[str, float]:
    """What a comparison is doing, and the share of its prompts that is done."""
    cases, positions = event["cases"], event["positions"]
    done = 0.5 + 0.5 * event["scored_positions"] / positions if positions else 0.0
    return f"prompt {event['case'] + 1} of {cases}: {event['stage']}", (event["case"] + done) / cases
