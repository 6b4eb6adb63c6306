"""Renders untrusted chat templates in a child process with limits on time and memory.

The sandbox of `jinja_sandbox` keeps a template from Python's internals. It cannot stop one that loops
forever, fills memory, or computes a single product that takes hours in C. The server, which must answer
others while a template runs, therefore renders in a child process, which is started again after it has died.
The child process is not a sandbox by itself.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jinja2

from stillhouse.child_process import ChildDied, ChildProcess, import_path
from stillhouse.models.chat.template import ChatTemplate

CPU_S = 5.0
"""Processor time of one rendering."""
MEMORY_BYTES = 2**30
SHUTDOWN_S = 1.0
"""How long a child may take to exit before it is killed."""
MAX_CHARACTERS = 16 * 2**20
"""Longest text that a template may write: twice the largest body of a request."""


class IsolatedTemplate(ChatTemplate):
    """A chat template that is rendered in a child process."""

    @classmethod
    def of(cls, template: ChatTemplate) -> IsolatedTemplate:
        """``template`` with its rendering moved to a child process."""
        return cls(template.source, template.special_tokens, template.declared, template.tool_source)

    @functools.cached_property
    def _process(self) -> _RenderProcess:
        return _RenderProcess(self.source)

    def _run(self, variables: Mapping[str, Any]) -> str:
        reply = self._process.render(variables)
        if "line" in reply:
            raise jinja2.TemplateSyntaxError(reply["error"], reply["line"])
        if "error" in reply:
            raise jinja2.TemplateError(reply["error"])
        return reply["text"]


class _RenderProcess:
    """The child process, started at its first use. Threads can share it; they take turns."""

    def __init__(self, source: str) -> None:
        self._source, self._lock = source, threading.Lock()
        self._process: ChildProcess | None = None

    def render(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The reply: `text`, or `error`, with the `line` where the template is malformed."""
        with self._lock:
            if self._process is None:
                self._process = ChildProcess(
                    ["-m", __name__, str(CPU_S)], env=import_path(), shutdown_s=SHUTDOWN_S
                )
                self._process.send(self._source)
            self._process.send(variables)
            try:
                return json.loads(self._process.receive())  # without a deadline: the child limits itself
            except ChildDied:
                self._process.close()
                self._process = None
                memory = f"{MEMORY_BYTES / 2**30:g} GiB of memory"
                return {"error": f"it took more than {CPU_S:g} s, or more than {memory}"}


def main() -> None:
    """The child process: reads the template's source, then variables, one JSON line each.

    Its argument is the processor time of one rendering, in seconds.
    """
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    cpu_s = float(sys.argv[1])
    source = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        variables = json.loads(line)
        # SIGPROF kills the process, even in the middle of a C call, where no Python handler would run.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        reply = _rendered(source, variables)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


def _rendered(source: str, variables: dict[str, Any]) -> dict[str, Any]:
    from stillhouse.models.chat.jinja_sandbox import compile_template

    try:
        text = compile_template(source).render(**variables)
        text.encode()  # a lone surrogate raises here, not in the server
    except jinja2.TemplateSyntaxError as error:
        return {"error": error.message, "line": error.lineno}
    except Exception as error:  # a template is a third-party program: it can fail in any way
        return {"error": str(error)[:500] or type(error).__name__}
    if len(text) > MAX_CHARACTERS:
        return {"error": f"it writes {len(text):,} characters; the limit is {MAX_CHARACTERS:,}"}
    return {"text": text}


if __name__ == "__main__":
    main()
