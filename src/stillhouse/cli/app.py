"""The application: registers all verbs, and turns every failure into a message and an exit status.

:mod:`.exit_status` has the table of exit statuses.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from stillhouse import __version__
from stillhouse.cli import (
    ask,
    chat,
    collect,
    evaluate,
    export,
    fetch_embedded,
    init,
    models,
    plan,
    push,
    run,
    serve,
    terms,
    trace,
    train,
    verify,
)
from stillhouse.cli.completion import completion_command
from stillhouse.cli.exit_status import INTERRUPTED, PIPE_CLOSED, SUCCESS, status_line
from stillhouse.cli.failures import explain
from stillhouse.cli.help_text import WholeNames, unwrap
from stillhouse.cli.overrides import gather_overrides
from stillhouse.console import console
from stillhouse.errors import StillhouseError, UsageError

SUMMARY = "Distil a large language model into a small one that you own."
EPILOGUE = f"""\
{status_line()}
`still VERB --help` shows examples; `still --install-completion` sets up completion in your shell."""

app = App(
    name="still",
    help=SUMMARY,
    help_epilogue=EPILOGUE,
    help_formatter=WholeNames(),
    help_format="plaintext",
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
VERBS = {
    "init": init.init,
    "run": run.run,
    "plan": plan.plan,
    "collect": collect.collect,
    "train": train.train,
    "eval": evaluate.evaluate,
    "trace": trace.trace,
    "chat": chat.chat,
    "ask": ask.ask,
    "serve": serve.serve,
    "export": export.export,
    "push": push.push,
    "models": models.models,
    "terms": terms.terms,
    "verify": verify.verify,
    "fetch-embedded": fetch_embedded.fetch_embedded,
}
RESUMING_VERBS = ("run", "collect", "train", "eval", "trace", "push", "fetch-embedded")
"""Verbs that keep finished work; the others start again."""
for position, (name, verb) in enumerate(VERBS.items()):
    module = sys.modules[verb.__module__]
    command = App(
        name=name, sort_key=position, help_epilogue=module.EXAMPLES, usage=getattr(module, "USAGE", None)
    )
    verb.__doc__ = unwrap(verb.__doc__ or "")
    command.default(verb)
    for subcommand_name, (function, examples) in getattr(module, "SUBCOMMANDS", {}).items():
        subcommand = App(name=subcommand_name, help_epilogue=examples)
        function.__doc__ = unwrap(function.__doc__ or "")
        subcommand.default(function)
        command.command(subcommand)
    app.command(command)
app.command(completion_command(app), name="--install-completion")


def entry() -> NoReturn:
    """Entry point of the command. After ctrl-C it exits at once, without waiting for a model's answer."""
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    _wait_passively()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a terminal without a character must not stop a run
    try:
        status = _run(tokens)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. Without this Python fails again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _wait_passively() -> None:
    """Lets the threads of torch sleep while they wait for each other, unless the user chose how they wait.

    By default they spin, which costs little on an idle machine. As soon as another process wants a core, one
    thread spins through the time that the other one needs. Read once, when torch is loaded; child processes
    inherit it. benchmarks/busy_machine.py measures both.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _run(tokens: list[str]) -> int:
    # read before parsing, so that they also apply to errors of the parser
    debug = "--debug" in tokens
    console.json = "--json" in tokens
    console.quiet = "--quiet" in tokens
    try:
        app(gather_overrides(tokens), exit_on_error=False, print_error=False)
        return SUCCESS
    except KeyboardInterrupt:
        resumes = next((token for token in tokens if token in VERBS), None) in RESUMING_VERBS
        console.error("interrupted" + ("; run the same command again to resume" if resumes else ""))
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except CycloptsError as error:
        return _fail(UsageError(str(error), hint="See `still --help` and `still VERB --help`."), debug)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _fail(explain(error), debug)


def _fail(error: StillhouseError, debug: bool) -> int:
    console.error(str(error))
    if error.hint:
        console.hint(error.hint)
    console.data({**error.report, "error": str(error), "hint": error.hint, "status": error.exit_status})
    return error.exit_status
