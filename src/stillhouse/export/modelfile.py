"""Writes an Ollama Modelfile and a model card.

Ollama renders prompts with Go templates. A chat template is converted only if it does no more than put two
fixed texts around each message of a role. The texts are found by rendering, and then verified on other
conversations. For a template that does more (it trims, merges the system message into the user's, drops
reasoning), no TEMPLATE is written: Ollama then uses its own version of the template in the GGUF file if it
has one, and llama.cpp runs that template itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.errors import ModelError
from stillhouse.export.source import Source
from stillhouse.models import ChatTemplate, Message

TemplateLocation = Literal["modelfile", "file", "none"]
_NO_TEMPLATE = {
    "file": "Ollama's template language cannot express the chat template; the one in the GGUF file applies.",
    "none": "The model has no chat template: it continues the text of the prompt.",
}
_ROLES = ("system", "user", "assistant")
_PLACEHOLDERS = {"system": "\ue000S\ue000", "user": "\ue000U\ue000", "assistant": "\ue000A\ue000"}
_PROBE_CONTENTS = ("Hi", "  two  spaces \n", "a\n\nb", "<think>\nso\n</think>\n\nfour", "{{ .x }}")
# Conversations by the first letters of their roles.
_PROBE_ROLES = ("u", "su", "uau", "suau", "uauau", "suauau", "ua", "sua", "uaua")


@dataclass(frozen=True)
class FixedTextTemplate:
    """A chat template that only puts a fixed text before and after each message."""

    around: Mapping[str, tuple[str, str]]
    """Role -> text before, text after."""
    start: str
    """Text before the first message."""
    answer: str
    """Text after the last message, before the answer."""
    system: str | None
    """The default system message."""

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


def modelfile(
    source: Source, gguf_name: str, *, add_bos: bool, max_context: int | None = None
) -> tuple[str, TemplateLocation]:
    """The Modelfile's text, and where the chat template is.

    Args:
        gguf_name: the file's name, beside the Modelfile.
        add_bos: whether the runtime adds the start token itself.
        max_context: the longest context, where the file allows less than the model.
    """
    turns = as_fixed_texts(source.template) if source.template.declared else None
    where: TemplateLocation = "modelfile" if turns else "file" if source.template.declared else "none"
    lines = [f"FROM ./{gguf_name}"]
    if turns is None:
        lines.append(f"# {_NO_TEMPLATE[where]}")
    else:
        lines.append(f'TEMPLATE """{_go_template(turns, _template_start(source, turns, add_bos=add_bos))}"""')
        if turns.system is not None:
            lines.append(f'SYSTEM """{turns.system}"""')
    if max_context is not None:
        lines.append(f"PARAMETER num_ctx {max_context}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in _stops(source)]
    if source.license and '"' not in source.license:  # the card's text must not end the quotes
        lines.append(f'LICENSE "{source.license}"')
    return "\n".join(lines) + "\n", where


def as_fixed_texts(template: ChatTemplate) -> FixedTextTemplate | None:
    """``template`` as fixed texts around messages; None where it does more than that."""
    try:
        turns = _infer(template)
        return turns if turns is not None and _is_equivalent(template, turns) else None
    except ModelError:  # the template refuses one of the probe conversations
        return None


def readme(source: Source, files: Sequence[str]) -> str:
    """A short card for a model that has none."""
    listed = "\n".join(f"- `{file}`" for file in files)
    license = f"license: {source.license}\n" if source.license else ""
    return (
        f"---\n{license}tags: [gguf]\n---\n\n# {source.name}\n\n{source.config.model_type} in GGUF, "
        f"exported by Stillhouse.\n\n{listed}\n"
    )


def _infer(template: ChatTemplate) -> FixedTextTemplate | None:
    """The only possible texts, from the rendering of placeholder messages."""

    def render(roles: str, *, answer: bool = False) -> str:
        names = {role[0]: role for role in _ROLES}
        messages = [{"role": names[r], "content": _PLACEHOLDERS[names[r]]} for r in roles]
        return template.render(messages, add_generation_prompt=answer)

    plain = render("su")
    twice = render("suau")
    if not twice.startswith(plain) or not (prompt := render("su", answer=True)).startswith(plain):
        return None
    head, _, rest = plain.partition(_PLACEHOLDERS["system"])
    between, _, user_after = rest.partition(_PLACEHOLDERS["user"])
    assistant_before, _, tail = twice[len(plain) :].partition(_PLACEHOLDERS["assistant"])
    user_before = tail.removesuffix(user_after).partition(_PLACEHOLDERS["user"])[0]
    # The text between two messages is the end of one and the beginning of the next. Try every cut.
    for cut in range(len(user_before) + 1):
        before = user_before[cut:]
        if not between.endswith(before):
            continue
        system_after, assistant_after = between.removesuffix(before), user_before[:cut]
        start, default = _start(template, head, before, system_after)
        around = {
            "system": (head.removeprefix(start), system_after),
            "user": (before, user_after),
            "assistant": (assistant_before, assistant_after),
        }
        turns = FixedTextTemplate(around, start, prompt[len(plain) :], default)
        if _is_equivalent(template, turns):
            return turns
    return None


def _start(template: ChatTemplate, head: str, user_before: str, system_after: str) -> tuple[str, str | None]:
    """The text before the first message, and the default system message."""
    alone = template.render([{"role": "user", "content": _PLACEHOLDERS["user"]}])
    bos = template.special_tokens.get("bos_token") or ""
    is_bos_once = bos and alone.startswith(bos) and head.startswith(bos) and not user_before.startswith(bos)
    start = bos if is_bos_once else ""
    own, end = alone.partition(_PLACEHOLDERS["user"])[0], system_after + user_before
    if own.startswith(head) and own.endswith(end) and len(own) >= len(head) + len(end):
        return start, own[len(head) : len(own) - len(end)]
    return start, None


def _is_equivalent(template: ChatTemplate, turns: FixedTextTemplate) -> bool:
    """Whether both render conversations of several shapes and contents alike."""
    names = {role[0]: role for role in _ROLES}
    contents = itertools.cycle(_PROBE_CONTENTS)
    for roles, _ in itertools.product(_PROBE_ROLES, range(3)):
        messages = [{"role": names[r], "content": next(contents)} for r in roles]
        for answer in (False, True):
            if template.render(messages, add_generation_prompt=answer) != turns.render(
                messages, add_generation_prompt=answer
            ):
                return False
    texts = [turns.start, turns.answer, turns.system or "", *itertools.chain(*turns.around.values())]
    # Go would read these as its own syntax, or the Modelfile as the end of the template.
    return not any(syntax in text for text in texts for syntax in ("{{", "}}", '"""'))


def _go_template(turns: FixedTextTemplate, start: str) -> str:
    """The template in Go's text/template, for Ollama: `.Messages` have `.Role` and `.Content`."""
    branches = [
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}'
        f"{turns.around[role][0]}{{{{ .Content }}}}{turns.around[role][1]}"
        for role in _ROLES
    ]
    return f"{start}{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{turns.answer}"


def _template_start(source: Source, turns: FixedTextTemplate, *, add_bos: bool) -> str:
    """The text that the template must write itself: without the start token where the runtime adds it."""
    bos = source.tokenizer.bos_token
    return turns.start.removeprefix(bos) if add_bos and isinstance(bos, str) else turns.start


def _stops(source: Source) -> list[str]:
    return [str(token) for token in source.tokenizer.convert_ids_to_tokens(list(source.ends))]


def _quoted(text: str) -> str:
    """A Modelfile's value. It has no escapes, so three quotes are used where one would end it."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
