"""An Ollama Modelfile, and a card beside the file.

Ollama writes prompts with Go templates. A chat template is put into one only where it says no more
than: each message stands between two fixed texts of its role. That is found by rendering and then
proved on other conversations. Where it says more (it trims, folds the system message into the
user's, drops thoughts), no TEMPLATE is written: Ollama then looks whether it knows the template that
is inside the GGUF file, and llama.cpp runs that one itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.errors import ModelError
from stillhouse.export.source import Source
from stillhouse.models import ChatTemplate, Message

Template = Literal["modelfile", "file", "none"]
_NO_TEMPLATE = {
    "file": "The chat template says more than Ollama's can; the one inside the GGUF file counts.",
    "none": "The model has no chat template: it goes on with what it is given.",
}
_ROLES = ("system", "user", "assistant")
_MARK = {"system": "\ue000S\ue000", "user": "\ue000U\ue000", "assistant": "\ue000A\ue000"}
_CONTENTS = ("Hi", "  two  spaces \n", "a\n\nb", "<think>\nso\n</think>\n\nfour", "{{ .x }}")
_SHAPES = ("u", "su", "uau", "suau", "uauau", "suauau", "ua", "sua", "uaua")


@dataclass(frozen=True)
class Turns:
    """A chat template that is nothing but a text before and one after each message."""

    around: Mapping[str, tuple[str, str]]
    """Role -> text before, text after."""
    start: str
    """Before everything."""
    answer: str
    """After everything, where the answer begins."""
    system: str | None
    """The system message where none is given."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as text."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [
            before + message["content"] + after
            for message in messages
            for before, after in [self.around[message["role"]]]
        ]
        return self.start + "".join(parts) + self.answer * add_generation_prompt


def modelfile(source: Source, gguf_name: str, *, add_bos: bool) -> tuple[str, Template]:
    """The Modelfile's text, and where the chat template is.

    Args:
        gguf_name: the file's name, beside the Modelfile.
        add_bos: whether the runtime puts the start token itself.
    """
    turns = as_turns(source.template) if source.template.declared else None
    where: Template = "modelfile" if turns else "file" if source.template.declared else "none"
    lines = [f"FROM ./{gguf_name}"]
    if turns is None:
        lines.append(f"# {_NO_TEMPLATE[where]}")
    else:
        lines.append(f'TEMPLATE """{_go_template(turns, _own_start(source, turns, add_bos=add_bos))}"""')
        if turns.system is not None:
            lines.append(f'SYSTEM """{turns.system}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in _stops(source)]
    if source.license and '"' not in source.license:  # it comes from the card; it must not end the quotes
        lines.append(f'LICENSE "{source.license}"')
    return "\n".join(lines) + "\n", where


def as_turns(template: ChatTemplate) -> Turns | None:
    """``template`` as texts around messages; None where it says more than that."""
    try:
        turns = _guess(template)
        return turns if turns is not None and _holds(template, turns) else None
    except ModelError:  # it refuses one of the conversations
        return None


def readme(source: Source, files: Sequence[str]) -> str:
    """A short card for a model that has none."""
    listed = "\n".join(f"- `{file}`" for file in files)
    license = f"license: {source.license}\n" if source.license else ""
    return (
        f"---\n{license}tags: [gguf]\n---\n\n# {source.name}\n\n{source.config.model_type} in GGUF, "
        f"exported by Stillhouse.\n\n{listed}\n"
    )


def _guess(template: ChatTemplate) -> Turns | None:
    """The only texts that could be right, from how marked messages come out."""

    def render(roles: str, *, answer: bool = False) -> str:
        names = {role[0]: role for role in _ROLES}
        messages = [{"role": names[r], "content": _MARK[names[r]]} for r in roles]
        return template.render(messages, add_generation_prompt=answer)

    plain = render("su")
    twice = render("suau")
    if not twice.startswith(plain) or not (asked := render("su", answer=True)).startswith(plain):
        return None
    pieces = [plain.partition(_MARK["system"]), twice[len(plain) :].partition(_MARK["assistant"])]
    head, _, rest = pieces[0]
    user_after = rest.partition(_MARK["user"])[2]
    tail_before, _, tail = pieces[1]
    user_before = tail.removesuffix(user_after).partition(_MARK["user"])[0]
    between = rest.partition(_MARK["user"])[0]
    # Texts between two messages are the end of one and the start of the next: they must part.
    for cut in range(len(user_before) + 1):
        before = user_before[cut:]
        if not between.endswith(before):
            continue
        system_after, assistant_after = between.removesuffix(before), user_before[:cut]
        start, default = _start(template, head, before, system_after)
        around = {
            "system": (head.removeprefix(start), system_after),
            "user": (before, user_after),
            "assistant": (tail_before, assistant_after),
        }
        turns = Turns(around, start, asked[len(plain) :], default)
        if _holds(template, turns):
            return turns
    return None


def _start(template: ChatTemplate, head: str, user_before: str, system_after: str) -> tuple[str, str | None]:
    """The text before the first message, and the system message that stands there when none is given."""
    alone = template.render([{"role": "user", "content": _MARK["user"]}])
    bos = template.special_tokens.get("bos_token") or ""
    once = bos and alone.startswith(bos) and head.startswith(bos) and not user_before.startswith(bos)
    start = bos if once else ""
    own, end = alone.partition(_MARK["user"])[0], system_after + user_before
    if own.startswith(head) and own.endswith(end) and len(own) >= len(head) + len(end):
        return start, own[len(head) : len(own) - len(end)]
    return start, None


def _holds(template: ChatTemplate, turns: Turns) -> bool:
    """Whether both say the same of conversations of several shapes and contents."""
    names = {role[0]: role for role in _ROLES}
    contents = itertools.cycle(_CONTENTS)
    for shape, _ in itertools.product(_SHAPES, range(3)):
        messages = [{"role": names[r], "content": next(contents)} for r in shape]
        for answer in (False, True):
            if template.render(messages, add_generation_prompt=answer) != turns.render(
                messages, add_generation_prompt=answer
            ):
                return False
    texts = [turns.start, turns.answer, turns.system or "", *itertools.chain(*turns.around.values())]
    return not any(sign in text for text in texts for sign in ("{{", "}}", '"""'))


def _go_template(turns: Turns, start: str) -> str:
    """In Go's text/template, as Ollama calls it: `.Messages` hold `.Role` and `.Content`."""
    branches = [
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
        f"{turns.around[role][0]}{{{{ .Content }}}}{turns.around[role][1]}"
        for role in _ROLES
    ]
    return f"{start}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{turns.answer}"


def _own_start(source: Source, turns: Turns, *, add_bos: bool) -> str:
    """What the template must write itself: not the start token, where the runtime puts one."""
    bos = source.tokenizer.bos_token
    return turns.start.removeprefix(bos) if add_bos and isinstance(bos, str) else turns.start


def _stops(source: Source) -> list[str]:
    return [str(token) for token in source.tokenizer.convert_ids_to_tokens(list(source.ends))]


def _quoted(text: str) -> str:
    """As a Modelfile's value, which knows no escapes: three quotes where one would end it."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
