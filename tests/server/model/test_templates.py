"""Chat templates of strangers: what transformers writes, and nothing that outlasts its limits."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest

from manylora.adapters.errors import ChatTemplateError
from manylora.server.errors import QueueFull
from manylora.server.model.text.templates import Conversation, TemplateProcesses
from tests.support.tiny_models import CHAT_TEMPLATE, byte_tokenizer

MESSAGES = [{"role": "system", "content": "s\ud800"}, {"role": "user", "content": "hi <é> 'x'"}]
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}


@pytest.fixture
async def processes() -> AsyncIterator[TemplateProcesses]:
    made = TemplateProcesses(seconds=1.0, max_chars=10_000, max_processes=2)
    yield made
    await made.close()


async def render(processes: TemplateProcesses, template: str, **options: Any) -> str:
    digest = sha256(template.encode()).hexdigest()
    return await processes.render(digest, template, Conversation(MESSAGES, SPECIAL, **options))


GOOD = [
    CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% endfor %}",
    "{{ messages | tojson }}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ eos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\n"
    "  {% if loop.first %}{% continue %}{% endif %}{{ ns.n }} {{ m['role'].upper() }}{% endfor %}\n",
    "{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say(messages[-1].content) }}{{ strftime_now('%Y') }}",
]


@pytest.mark.slow
async def test_it_writes_what_transformers_writes(processes: TemplateProcesses) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for template in GOOD:
        hf = byte_tokenizer()
        hf.chat_template = template
        for prompt in (True, False):
            expected = hf.apply_chat_template(
                MESSAGES, tools=tools, add_generation_prompt=prompt, tokenize=False
            )
            assert await render(processes, template, tools=tools, add_generation_prompt=prompt) == expected


BAD = [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "within 1 seconds"),
    ("{{ 9 ** (9 ** 9) }}", "within 1 seconds"),
    ("{{ 'ab' * (2 ** 31) }}", "memory"),
    (
        "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "memory",
    ),
    ("{{ 'x' * 10001 }}", "10,001 characters; the limit is 10,000"),
    ("{{ range(10 ** 9) | list }}", "Range too big"),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ nothing.x }}", "undefined"),
    ("{% for %}", "Expected"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "loader"),
    ("{% import 'os' as os %}", "loader"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("template", "reason"), BAD)
async def test_a_template_that_misbehaves(processes: TemplateProcesses, template: str, reason: str) -> None:
    """It is told why, the loop goes on meanwhile, and the next conversation finds a process again."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)  # not at once: that would keep a core busy for nothing
            ticks += 1

    ticking = asyncio.create_task(tick())
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=reason):
            await render(processes, template)
    assert ticks > 10
    assert await render(processes, "fine") == "fine"
    ticking.cancel()


@pytest.mark.slow
async def test_another_template_is_not_held_up(processes: TemplateProcesses) -> None:
    await render(processes, "warm")
    slow = asyncio.create_task(render(processes, BAD[0][0]))
    await asyncio.sleep(0)
    assert await render(processes, "quick") == "quick"
    assert not slow.done()
    with pytest.raises(ChatTemplateError):
        await slow


@pytest.mark.slow
async def test_a_bounded_number_waits(processes: TemplateProcesses) -> None:
    answers = await asyncio.gather(
        *(render(processes, "{{ messages[1].content }}") for _ in range(70)), return_exceptions=True
    )
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 6
    assert answers.count("hi <é> 'x'") == 64


@pytest.mark.slow
async def test_many_templates_take_few_processes(processes: TemplateProcesses) -> None:
    assert [await render(processes, f"{n}") for n in range(5)] == ["0", "1", "2", "3", "4"]
    assert processes.num_processes == 2
    assert await asyncio.gather(*(render(processes, f"{n}") for n in range(5))) == ["0", "1", "2", "3", "4"]
    assert processes.num_processes == 2


@pytest.mark.slow
async def test_a_cancelled_rendering_does_not_answer_the_next(processes: TemplateProcesses) -> None:
    template = "{{ messages[0].content }}"
    digest = sha256(template.encode()).hexdigest()
    for turn in range(10):
        first = asyncio.create_task(
            processes.render(digest, template, Conversation([{"content": "old"}], {}))
        )
        for _ in range(turn):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await processes.render(digest, template, Conversation([{"content": "new"}], {})) == "new"


@pytest.mark.slow
async def test_the_first_process_may_die(
    processes: TemplateProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    assert await render(processes, "one") == "one"
    (first,) = started
    first.kill()
    first.wait()
    assert await render(processes, "two") == "two"
    assert len(started) == 2
