"""``manylora compare``: ask a running server, show the result, write the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manylora.server.cli.admin.session import Session, with_session
from manylora.server.client.errors import Unusable

if TYPE_CHECKING:
    from manylora.server.client.publishing import Working

_Targets = Annotated[
    list[str],
    typer.Option(
        "--target", "-t", metavar="MODEL", help="Two to eight: the base model, adapters, revisions, mixes."
    ),
]
_Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="A question. Repeatable.")
]
_Messages = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="JSON: one conversation or several.", show_default=False),
]
_File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="One question a line, or JSON Lines.", show_default=False),
]
_Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompts as they are, without template.")]
_Reference = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What is scored. Default: the baseline's answer.", show_default=False),
]
_Baseline = Annotated[
    int, typer.Option(metavar="INDEX", min=0, help="The target that the others are compared with.")
]
_MaxTokens = Annotated[int | None, typer.Option(metavar="COUNT", help="Of one answer.", show_default=False)]
_Temperature = Annotated[float, typer.Option(metavar="NUMBER", help="0 is greedy.")]
_Seed = Annotated[int | None, typer.Option(metavar="NUMBER", show_default=False)]
_OneByOne = Annotated[
    bool, typer.Option("--one-by-one", help="Targets answer in turn, so that they do not slow each other.")
]
_Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a report.", show_default=False)
]


@with_session
def compare(
    session: Session,
    *,
    target: _Targets,
    prompt: _Prompts = None,
    messages: _Messages = None,
    file: _File = None,
    raw: _Raw = False,
    reference: _Reference = None,
    baseline: _Baseline = 0,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = 0.0,
    seed: _Seed = None,
    one_by_one: _OneByOne = False,
    html: _Html = None,
) -> None:
    """Compare models side by side: answers, and how far their probabilities are apart.

    All targets score the same reference; the verdict says whether they are the same model but for rounding.
    """
    from manylora.server.cli.compare.questions import questions  # noqa: PLC0415

    with session.talk() as client:
        if reference is not None and baseline:
            raise Unusable("with --reference the first target is the baseline: leave --baseline out")
        if baseline >= len(target):
            raise Unusable(f"--baseline {baseline}: the targets are numbered from 0 to {len(target) - 1}")
        asked = questions(prompt or [], messages, file, raw=raw)
        with _bar() as moved:
            result = client.compare(
                target,
                prompt=asked.prompt,
                conversations=asked.conversations,
                reference=baseline if reference is None else reference,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                one_by_one=one_by_one,
                progress=moved,
            )
        if html is not None:
            _write(html, result, asked.shown, session.url)
    if session.as_json:
        session.tell(result, str)
        return
    from manylora.server.cli.compare.terminal import show_comparison  # noqa: PLC0415

    show_comparison(result, asked.shown)


def _write(path: Path, result: Mapping[str, Any], shown: tuple[str, ...], url: str) -> None:
    from manylora.server.cli.compare.report import html_report  # noqa: PLC0415

    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    try:
        path.write_text(html_report(result, shown, f"{url}, {now}"), encoding="utf-8")
    except OSError as error:
        raise Unusable(f"{path} can't be written: {error.strerror}") from None


@contextmanager
def _bar() -> Iterator[Working]:
    """A bar on stderr that moves with the server's progress; none where that is no terminal."""
    from rich.progress import TaskProgressColumn, TimeRemainingColumn  # noqa: PLC0415

    from manylora.adapters.progress_bars import progress_bars  # noqa: PLC0415

    with progress_bars(TaskProgressColumn(), TimeRemainingColumn(), passing=True) as bars:
        task = bars.add_task("answers", total=None)
        yield lambda stage, done: bars.update(task, description=stage, completed=done, total=1.0)
