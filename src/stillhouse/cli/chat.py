"""``still chat``: a conversation with a model in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from stillhouse.cli.ask import (
    AnswerSettings,
    SettingsOptions,
    opened_chat_model,
    print_answer,
    read_text_option,
    warn_if_incomplete,
)
from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import StillhouseError, UsageError

if TYPE_CHECKING:
    from stillhouse.models import Sampling
    from stillhouse.serve.engines.conversation import ChatAnswer, ChatModel

EXAMPLES = """\
Examples:
  still chat embedded:smollm2
  still chat runs/quickstart --system "Answer in one sentence."
  still chat hub:org/model --temperature 0.2 --max-tokens 500
  still chat api:https://api.example.com/v1#model --api-key-env MY_KEY"""

COMMANDS = """\
  /help          these commands
  /clear         start a new conversation
  /system TEXT   set the system prompt and start a new conversation
  /again         answer the last question again
  /save FILE     append the conversation to a .jsonl file, as `still eval --data` reads it
  /exit          leave, as ctrl-D does
  \"\"\"            begins and ends a message of several lines
ctrl-C stops an answer."""
PROMPT, CONTINUED = "> ", "… "
QUOTES = '"""'


def chat(
    model: Annotated[str, Parameter(metavar="MODEL")],
    /,
    *,
    settings: SettingsOptions = AnswerSettings(),  # noqa: B008  frozen
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Talk to a model in the terminal; the conversation is not stored.

    Answers are printed while they are written; ctrl-C stops an answer, ctrl-D ends the chat, and
    /help lists the commands. Without a terminal, each line of stdin is a message.

    Parameters
    ----------
    model
        A directory, a run's directory (its student), file.gguf, embedded:smollm2, hub:org/name, or
        api:https://host/v1#model.
    """
    if console.json:
        raise UsageError("chat has no JSON output", hint="Use: still ask MODEL QUESTION --json")
    sampling, beginning = settings.sampling(), settings.messages()
    with opened_chat_model(model, settings) as (runner, chat_model):
        _Chat(runner, chat_model, settings, sampling, beginning).run()


class _Chat:
    """One conversation; commands change it."""

    def __init__(
        self,
        runner: asyncio.Runner,
        model: ChatModel,
        settings: AnswerSettings,
        sampling: Sampling,
        beginning: list[dict[str, str]],
    ) -> None:
        self._runner, self._model, self._settings, self._sampling = runner, model, settings, sampling
        self._beginning = beginning
        self._messages = list(beginning)
        self._attempt = 0
        """How often the last question was answered before; each time with another seed."""
        self._interactive = sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: console.info(COMMANDS),
            "/clear": lambda _: self._restart(self._beginning),
            "/system": self._set_system,
            "/again": lambda _: self._again(),
            "/save": self._save,
        }

    def run(self) -> None:
        """Reads messages and commands until the end of the input."""
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  input() then edits lines and recalls earlier ones
            context = self._model.context_length
            tokens = f"context {context:,} tokens; " if context else ""
            console.info(f"{tokens}/help lists the commands, ctrl-D ends")
        while (text := self._read()) is not None:
            if text in ("/exit", "/quit", "/bye"):
                return
            if not text.strip():
                continue
            command, _, argument = text.partition(" ")
            try:
                if command in self._commands:
                    self._commands[command](argument.strip())
                elif command.startswith("/") and command[1:].isalpha():
                    raise UsageError(f"there is no command {command}", hint="/help lists the commands.")
                else:
                    self._attempt = 0
                    self._messages.append({"role": "user", "content": text})
                    self._answer()
            except StillhouseError as error:
                if not self._interactive:
                    raise
                console.error(str(error))
                if error.hint:
                    console.hint(error.hint)

    def _answer(self) -> None:
        """Answers the last message. A question without any answer leaves the conversation."""
        from stillhouse.serve.engines.conversation import ChatAnswer

        answer, sampling = ChatAnswer(), self._sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=(sampling.seed + self._attempt) % 2**31)
        try:
            self._runner.run(print_answer(self._model, self._messages, sampling, answer))
            warn_if_incomplete(answer, self._settings)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            console.info("(stopped)")
        finally:
            self._keep(answer)

    def _keep(self, answer: ChatAnswer) -> None:
        if answer.text or answer.reasoning:
            self._messages.append(answer.message)
        else:
            self._messages.pop()

    def _again(self) -> None:
        if self._messages and self._messages[-1]["role"] == "assistant":
            self._messages.pop()
        if not self._messages or self._messages[-1]["role"] != "user":
            raise UsageError("there is no question to answer again")
        self._attempt += 1
        self._answer()

    def _set_system(self, text: str) -> None:
        text = read_text_option(text)
        self._beginning = [{"role": "system", "content": text}] if text else []
        self._restart(self._beginning)

    def _restart(self, beginning: list[dict[str, str]]) -> None:
        self._messages = list(beginning)
        console.info("new conversation" + (" with this system prompt" if beginning else ""))

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs a file", hint="/save conversations.jsonl")
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self._messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(f"{name} cannot be written: {error.strerror}") from error
        console.info(f"saved to {name}")

    def _read(self) -> str | None:
        """The next message or command; None at the end of the input."""
        line = self._read_line(PROMPT)
        if line is None or not line.startswith(QUOTES):
            return line
        lines, line = [], line.removeprefix(QUOTES)
        while line is not None and not line.rstrip().endswith(QUOTES):
            lines.append(line)
            line = self._read_line(CONTINUED)
        return "\n".join([*lines, (line or "").rstrip().removesuffix(QUOTES)]).strip("\n")

    def _read_line(self, prompt: str) -> str | None:
        while True:
            try:
                if not self._interactive:
                    line = sys.stdin.readline()
                    return line.rstrip("\r\n") if line else None
                if sys.stdout.isatty():
                    return input(prompt)
                print(prompt, end="", file=sys.stderr, flush=True)  # stdout carries answers
                return input()
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print("\n(ctrl-D or /exit ends)", file=sys.stderr)
            except UnicodeDecodeError as error:
                raise UsageError(f"the input is not text in UTF-8: {error}") from error
