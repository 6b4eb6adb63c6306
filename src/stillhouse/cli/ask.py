"""``still ask``: asks a model one question in the terminal or in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillhouse.cli.answer_printer import AnswerPrinter
from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.models import Message, Sampling
    from stillhouse.serve.engines.conversation import ChatAnswer, ChatModel

USAGE = "Usage: still ask [OPTIONS] MODEL [QUESTION]"
EXAMPLES = """\
Examples:
  still ask embedded:smollm2 "Why is the sky blue?"
  still ask runs/quickstart "Name three metals." --temperature 0
  still ask student.gguf "Summarize this." --system file:style.txt
  still ask api:http://127.0.0.1:8765/v1#smollm2 "Hello" --json"""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are sampled."""

    system: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """System prompt; file:PATH reads it from a file."""
    temperature: float = 0.7
    """Sampling temperature, at most 2; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling: the smallest set of tokens with this probability."""
    max_tokens: Annotated[int, Parameter(metavar="N")] = 2048
    """Longest answer, in tokens; never more than the model's context holds."""
    seed: Annotated[int | None, Parameter(metavar="N")] = None
    """Seed of the answers; the same seed gives the same answer. Random by default."""
    api_key_env: Annotated[str, Parameter(metavar="VARIABLE")] = "OPENAI_API_KEY"
    """Environment variable with the key of an `api:` model."""

    def sampling(self) -> Sampling:
        """The sampling settings; raises UsageError for values out of range."""
        from stillhouse.models import Sampling

        if not 0 <= self.temperature <= 2:  # as the server
            raise UsageError("--temperature must be between 0 and 2")
        if not 0 < self.top_p <= 1:
            raise UsageError("--top-p must be above 0 and at most 1")
        if self.max_tokens < 1:
            raise UsageError("--max-tokens must be at least 1")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise UsageError("--seed must be between 0 and 2147483647")
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=self.seed
        )

    def messages(self) -> list[Message]:
        """The beginning of a conversation: the system prompt, if there is one."""
        if self.system is None:
            return []
        return [{"role": "system", "content": read_text_option(self.system)}]


SettingsOptions = Annotated[AnswerSettings, Parameter(name="*")]


def ask(
    model: Annotated[str, Parameter(metavar="MODEL")],
    question: Annotated[str | None, Parameter(metavar="QUESTION")] = None,
    /,
    *,
    settings: SettingsOptions = AnswerSettings(),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Ask a model one question and print its answer while it is written.

    The answer goes to stdout, reasoning to stderr. Text from a pipe or file on stdin is the question,
    or follows it.

    Parameters
    ----------
    model
        A directory, a run's directory (its student), file.gguf, embedded:smollm2, hub:org/name, or
        api:https://host/v1#model.
    question
        The question; without it, stdin is the question.
    """
    text = _question(question)
    sampling, messages = settings.sampling(), settings.messages()
    messages.append({"role": "user", "content": text})
    with opened_chat_model(model, settings) as (runner, chat_model):
        answer = runner.run(print_answer(chat_model, messages, sampling))
    warn_if_incomplete(answer, settings)
    console.data(
        {
            "model": model,
            "answer": answer.text,
            "reasoning": answer.reasoning or None,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
    )


@contextlib.contextmanager
def opened_chat_model(reference: str, settings: AnswerSettings) -> Iterator[tuple[asyncio.Runner, ChatModel]]:
    """A model for answers in this terminal, and the event loop in which it lives; closed at the end."""
    from stillhouse.serve.engines.conversation import open_chat_model

    with asyncio.Runner() as runner:
        with console.progress(f"loading {reference}", None):
            model = runner.run(open_chat_model(reference, api_key_env=settings.api_key_env))
        try:
            yield runner, model
        finally:
            runner.run(model.close())


async def print_answer(
    model: ChatModel, messages: list[Message], sampling: Sampling, answer: ChatAnswer | None = None
) -> ChatAnswer:
    """Prints the next answer of a conversation while it streams (with --json only at its end).

    Args:
        answer: grows with what was printed, also if the answer is interrupted.
    """
    from stillhouse.serve.engines.conversation import ChatAnswer

    answer = ChatAnswer() if answer is None else answer
    printer = AnswerPrinter()
    pieces: Any = model.stream(messages, sampling, answer)
    try:
        async for kind, text in pieces:
            if not console.json:
                printer.add(kind, text)
    finally:
        # Closed here, not by the garbage collector: closing frees the model for the next question.
        await pieces.aclose()
        printer.end()
    return answer


def warn_if_incomplete(answer: ChatAnswer, settings: AnswerSettings) -> None:
    """Warns if the model did not end its answer itself."""
    if answer.finish_reason == "length":
        limit = (answer.completion_tokens or 0) >= settings.max_tokens
        reason = "at --max-tokens" if limit else "at the end of the model's context"
        console.warn(f"the answer was cut off {reason}, after {answer.completion_tokens or '?'} tokens")
    elif answer.finish_reason not in ("stop", "end_turn"):
        console.warn(f"the answer may be incomplete (finish reason: {answer.finish_reason or 'none'})")
    elif not answer.text.strip():
        console.warn("the model ended its answer without any text")


def read_text_option(value: str) -> str:
    """The text of an option: itself, or the content of the file in ``file:PATH``."""
    if not value.startswith("file:"):
        return value
    path = value.removeprefix("file:")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the text in {path} cannot be read: {error}") from error


def _question(question: str | None) -> str:
    """The question from the command line, stdin or both."""
    piped = ""
    if question is None or _stdin_has_text():
        if sys.stdin.isatty():
            raise UsageError("there is no question", hint='still ask MODEL "the question"')
        try:
            piped = sys.stdin.read().strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is not text in UTF-8: {error}") from error
    text = "\n\n".join(part for part in ((question or "").strip(), piped) if part)
    if not text:
        raise UsageError("the question is empty", hint='still ask MODEL "the question"')
    return text


def _stdin_has_text() -> bool:
    """Whether stdin is a pipe or a file, rather than a terminal or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or replaced by a test
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
