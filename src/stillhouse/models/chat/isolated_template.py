"""Chat templates from elsewhere, each rendered in a process that may die of it.

The sandbox of sandbox.py keeps a template from Python's internals. It cannot keep one from looping for ever,
from filling memory, or from a single product that takes hours in C. So whoever answers others while a
template runs (the server) has it run here: a child with a limit on its own time and memory, which is started
again when it has died. One JSON line in, one out. It is no sandbox of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import jinja2

from stillhouse.models.chat.template import ChatTemplate

CPU_S = 5.0
"""Of one rendering."""
MEMORY_BYTES = 2**30
PATIENCE_S = 1.0
"""With a child that is to end."""
LONGEST = 16 * 2**20
"""Characters that a template may write: twice the largest body of a request."""


class IsolatedTemplate(ChatTemplate):
    """A chat template that is rendered in a child process."""

    @classmethod
    def of(cls, template: ChatTemplate) -> IsolatedTemplate:
        """``template``, contained."""
        return cls(template.source, template.special_tokens, template.declared)

    @functools.cached_property
    def _child(self) -> _Child:
        return _Child(self.source)

    def _run(self, variables: Mapping[str, Any]) -> str:
        told = self._child.ask(variables)
        if "line" in told:
            raise jinja2.TemplateSyntaxError(told["error"], told["line"])
        if "error" in told:
            raise jinja2.TemplateError(told["error"])
        return told["text"]


class _Child:
    """The process, started when it is first asked; any number of threads may ask, one after another."""

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._end: weakref.finalize[..., _Child] | None = None

    def ask(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What came of it: `text`, or `error`, with the `line` where the template is malformed."""
        with self._lock:
            if self._end is None or not self._end.alive:
                self._start()
            with contextlib.suppress(OSError):
                self._pipe_in.write(json.dumps(variables).encode() + b"\n")
                self._pipe_in.flush()
            line = self._pipe_out.readline()
            if line.endswith(b"\n"):
                return json.loads(line)
            assert self._end is not None
            self._end()
            memory = f"{MEMORY_BYTES / 2**30:g} GiB of memory"
            return {"error": f"it took more than {CPU_S:g} s, or more than {memory}"}

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # ctrl-C is for the server, whose last answers may need a template
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin is not None and process.stdout is not None
        self._pipe_in, self._pipe_out = process.stdin, process.stdout
        self._end = weakref.finalize(self, _end, process)
        self._pipe_in.write(json.dumps(self._source).encode() + b"\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            assert pipe is not None
            pipe.close()
    try:
        process.wait(PATIENCE_S)  # without a line to read it ends by itself
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """The child: the template's source, then variables, a line each."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    source = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        variables = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process, in the middle of anything
        told = _rendered(source, variables)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(told), flush=True)


def _rendered(source: str, variables: dict[str, Any]) -> dict[str, Any]:
    from stillhouse.models.chat.jinja_sandbox import compile_template

    try:
        text = compile_template(source).render(**variables)
        text.encode()  # half a surrogate pair is no text
    except jinja2.TemplateSyntaxError as error:
        return {"error": error.message, "line": error.lineno}
    except Exception as error:  # a template is a program from elsewhere: it may fail in any way
        return {"error": str(error)[:500] or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text):,} characters; at most {LONGEST:,} are taken"}
    return {"text": text}


if __name__ == "__main__":
    main()
