"""The process that renders chat templates of adapters. Run as a script; imports nothing of this server.

A template is a program by a stranger. Here it runs without the server's memory, files or network, and what
it can take is bounded by the kernel: a timer over its CPU time that kills the process whatever it is doing,
a limit on memory, no new file descriptors, no writing. The first process only forks: one child for each
template, so that no template meets another's conversations.

``argv[1]`` is the descriptor of a socket, over which the descriptors of the children's sockets arrive.
A child reads and writes messages: eight bytes of length, then JSON. First comes ``{"template", "seconds",
"max_chars"}``, then conversations; each is answered by ``{"text"}`` or ``{"error"}``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

_MEMORY = 256 << 20  # bytes a child may take beside what it starts with
_MAX_ERROR = 500  # characters


def main() -> None:
    """Fork a child for each descriptor that arrives; end when the server does."""
    for template in ("{{ strftime_now('%Y') }}", "{{ nothing.x }}"):  # imports what is imported on demand
        _render(template, {"messages": [], "tools": None, "add_generation_prompt": True, "variables": {}}, 9)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need not be waited for
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                return
            if os.fork() == 0:
                control.close()
                _serve(socket.socket(fileno=descriptors[0]))
                os._exit(0)
            os.close(descriptors[0])


def _serve(connection: socket.socket) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which is to die
    _limit()
    stream = connection.makefile("rwb")
    first = _read(stream)
    if first is None:
        return
    while True:
        length = stream.read(8)
        if len(length) < 8:
            return
        signal.setitimer(signal.ITIMER_PROF, first["seconds"])
        conversation = json.loads(stream.read(int.from_bytes(length, "little")))
        answer = json.dumps(_render(first["template"], conversation, first["max_chars"])).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        stream.write(len(answer).to_bytes(8, "little") + answer)
        stream.flush()


def _read(stream: Any) -> Any:
    length = stream.read(8)
    return json.loads(stream.read(int.from_bytes(length, "little"))) if len(length) == 8 else None


def _limit() -> None:
    pages = Path("/proc/self/statm").read_text("ascii").split()[0]
    size = int(pages) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def _render(template: str, conversation: dict[str, Any], max_chars: int) -> dict[str, str]:
    try:
        ((text,), _) = render_jinja_template(
            conversations=[conversation["messages"]],
            tools=conversation["tools"],
            chat_template=template,
            add_generation_prompt=conversation["add_generation_prompt"],
            **conversation["variables"],
        )
    except MemoryError:
        return {"error": f"it needs more than {_MEMORY >> 20} MiB of memory"}
    except Exception as error:  # a template is a program that runs on the messages: it raises anything
        return {"error": str(error)[:_MAX_ERROR] or type(error).__name__}
    if len(text) > max_chars:
        return {"error": f"it writes {len(text):,} characters; the limit is {max_chars:,}"}
    return {"text": text}


if __name__ == "__main__":
    main()
