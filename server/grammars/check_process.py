"""The process in which grammars are tried. Run as a script; loads the files beside it that import nothing.

A grammar is a stranger's text. What it makes the library do (an expression that explodes, a stack that
overflows) happens here first, in a child for each grammar: with a timer over its CPU time that kills it
whatever it is doing, and limits on memory and stack. The first process only forks.

``argv[1]`` is the descriptor of a socket, over which the descriptors of the children's sockets arrive. A
child reads one message and writes one or two: eight bytes of length, then JSON. It reads ``{"kind", "text",
"style", "preface", "tokens", "special", "ends", "limits", "seconds", "memory"}``. It answers ``{"text",
"left_out"}`` with what the library is to compile, or ``{"error", "path"}``; the last message counts, the one
before it lacks the place of the error, which takes time to find.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import socket
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_STACK = 4 << 20  # bytes: less than the threads of the server have
_MAX_ERROR = 300  # characters
_LARGE = re.compile(r"\{\s*\d*\s*,?\s*\d\d+\s*\}")  # a repetition of an expression or of a rule
_STEPS = 400  # bytes of an answer that are tried where there are such
_STEPS_SECONDS = 0.2  # of CPU time that they may take; a grammar that is slow, but no slower, is taken
_QUOTE = ord('"')  # which would end a string of JSON
_MARK = b"\xff"  # with which the library tells control tokens from text


def _beside(name: str) -> Any:
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None, "it is a file of Python"
    assert spec.loader is not None, "it is a file of Python"
    sys.modules[name] = module = module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


schemas, texts, faults = _beside("schemas"), _beside("texts"), _beside("faults")


def main() -> None:
    """Fork a child for each descriptor that arrives; end when the server does."""
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
    stream = connection.makefile("rwb")
    length = stream.read(8)
    if len(length) < 8:
        return
    request = json.loads(stream.read(int.from_bytes(length, "little")))
    _limit(request["seconds"], request["memory"])
    check = _Check(request)
    answer = check.answer()
    _write(stream, answer)
    if "error" in answer and not answer["path"] and request["kind"] == "JSON schema":
        _write(stream, {**answer, "path": check.place()})


def _write(stream: Any, answer: dict[str, Any]) -> None:
    message = json.dumps(answer).encode()
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def _limit(seconds: float, memory: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which is to die
    signal.setitimer(signal.ITIMER_PROF, seconds)
    pages = Path("/proc/self/statm").read_text("ascii").split()[0]
    size = int(pages) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, _STACK))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


class _Check:
    """One grammar, tried on a vocabulary of bytes with the model's control tokens."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._vocabulary = _Bytes(request)
        self._tokenizer = LLTokenizer(TokenizerWrapper(self._vocabulary), slices=[])
        self._limits = LLParserLimits(**request["limits"], verbose_errors=False)
        self._schema: Any = None  # as it is prepared
        self._message = ""  # the library's own, in full

    def answer(self) -> dict[str, Any]:
        try:
            text, left_out = self._text()
        except schemas.SchemaRefused as refused:
            return {"error": str(refused), "path": refused.path}
        except (texts.TextRefused, ValueError) as refused:
            return {"error": str(refused)[:_MAX_ERROR], "path": ""}
        except RecursionError:
            return {"error": "it is nested too deeply", "path": ""}
        self._message = self._objection(text)
        if self._message:
            return {"error": _readable(self._message), "path": ""}
        if _LARGE.search(text) and self._explodes(text):
            error = (
                "it repeats too much, or in too many ways: what may follow soon takes too much work to tell"
            )
            return {"error": error, "path": ""}
        return {"text": text, "left_out": left_out}

    def place(self) -> str:
        """The path of the keyword that the library objects to, if that can be told."""
        if not self._message or not isinstance(self._schema, dict):
            return ""
        return str(faults.locate(self._schema, self._message, self._of_schema, schemas.subschemas))

    def _text(self) -> tuple[str, list[str]]:
        request, left_out = self._request, list[str]()
        text, style = request["text"], request["style"]
        if request["kind"] == "JSON schema":
            text, left_out = schemas.prepare_schema(
                json.loads(text), closed=style["closed"], lenient=style["lenient"]
            )
            self._schema = text
        return texts.library_text(request["kind"], text, style, request["preface"]), left_out

    def _of_schema(self, schema: Any) -> str:
        style, preface = self._request["style"], self._request["preface"]
        return self._objection(texts.library_text("JSON schema", schema, style, preface))

    def _explodes(self, text: str) -> bool:
        """Whether the library gives up amid answers that it has begun to follow.

        It reads expressions as it goes: repetitions of repetitions cost nothing before their first letters.
        """
        free = self._vocabulary.free
        tokenizer = LLTokenizer(
            TokenizerWrapper(self._vocabulary)
        )  # with all that the server's own works out
        for choose in (min, max, random.Random(0).choice):
            matcher = LLMatcher(tokenizer, text, log_level=0, limits=self._limits)
            until = time.process_time() + _STEPS_SECONDS
            for _ in range(_STEPS):
                if time.process_time() > until:
                    break
                mask = matcher.compute_bitmask()
                found = [byte for byte, token in enumerate(free) if mask[token >> 3] >> (token & 7) & 1]
                if matcher.is_error():
                    return True
                if not found:
                    break
                going_on = [byte for byte in found if byte != _QUOTE]
                matcher.consume_token(free[choose(going_on or found)])
        return False

    def _objection(self, text: str) -> str:
        """What the library says of a grammar, also of what may come first; "" if it takes it."""
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error())


class _Bytes:
    """A vocabulary as wide as the model's, of which only the control tokens are its own."""

    def __init__(self, request: dict[str, Any]) -> None:
        special = {int(token): text for token, text in request["special"].items()}
        free = [token for token in range(request["tokens"]) if token not in special]
        self.free = free[:256]  # those of the bytes
        tokens = [b""] * max(request["tokens"], 256 + len(special))
        for byte, token in zip(range(256), free, strict=False):
            tokens[token] = bytes([byte])
        for token, text in special.items():
            tokens[token] = _MARK + text.encode()
        self.tokens = tokens
        self.special_token_ids = sorted(special)
        self.eos_token_id = request["ends"][0]
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return [self.tokens.index(bytes([byte])) for byte in text]


def _readable(message: str) -> str:
    """What it says, without what shows the place in a text that is not the client's."""
    words = re.split(r"\n\s*\d+ \| |<non-verbose/>", message)[0].split("(in regex): ")[-1]
    return " ".join(words.split())[:_MAX_ERROR]


if __name__ == "__main__":
    main()
