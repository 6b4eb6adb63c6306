"""The teacher's context: a system prompt and worked examples before every conversation.

The student reads a shared context too. A private one is for the teacher only, and the student learns to
answer as if it had read it: context distillation (Askell et al. 2021, arXiv:2112.00861, section 2.1; Snell,
Klein & Zhong 2022, arXiv:2209.15189).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.corpus.prompts.load import load_prompts
from stillhouse.errors import CorpusError
from stillhouse.recipe import Teacher

if TYPE_CHECKING:
    from stillhouse.models import Message

FILE = "file:"
"""Prefix of the path of a text file that holds the system prompt."""


@dataclass(frozen=True)
class Context:
    """A teacher's system prompt and examples."""

    system: str | None = None
    examples: tuple[Message, ...] = ()
    """Messages of finished conversations, one after another."""
    private: bool = False
    """Whether only the teacher reads the context."""

    def __bool__(self) -> bool:
        return self.system is not None or bool(self.examples)

    def for_teacher(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as the teacher reads it; its own system prompt, if any, replaces the context's."""
        own = list(messages[:1]) if messages[0]["role"] == "system" else []
        system: list[Message] = own
        if not own and self.system is not None:
            system = [{"role": "system", "content": self.system}]
        return [*system, *self.examples, *messages[len(own) :]]

    def for_student(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as the student reads it and the corpus stores it."""
        return list(messages) if self.private else self.for_teacher(messages)

    @property
    def key(self) -> Any:
        """The context's part of an exchange's id: another context gives other ids."""
        # A plain system prompt keeps the ids of corpora from before contexts had examples.
        if self.examples or self.private:
            return [self.system, list(self.examples), self.private]
        return self.system

    def as_json(self) -> dict[str, Any]:
        """The context as plain data, the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Context:
        return cls(data["system"], tuple(data["examples"]), data["private"])


def load_context(teacher: Teacher) -> Context:
    """Reads the context of ``teacher``.

    Raises:
        CorpusError: a file is missing or malformed, or an example is not a finished conversation.
    """
    system, examples = teacher.system, []
    if system is not None and system.startswith(FILE):
        system = _text(Path(system.removeprefix(FILE)))
    for example in load_prompts(teacher.examples) if teacher.examples else ():
        if not example.is_finished or example.messages[0]["role"] == "system":
            raise CorpusError(
                f"{teacher.examples}: an example is a conversation that ends with an answer and has no "
                f"system prompt; this one is not: {example.messages[-1]['content'][:60]!r}",
                hint="Give each line `prompt` and `completion`, or `messages`; the system prompt is "
                "teacher.system.",
            )
        examples += example.messages
    return Context(system, tuple(examples), teacher.context == "private")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except FileNotFoundError as error:
        raise CorpusError(f"teacher.system: there is no file {path}") from error
    except OSError as error:
        raise CorpusError(f"teacher.system: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"teacher.system: {path} is not UTF-8 text") from error
