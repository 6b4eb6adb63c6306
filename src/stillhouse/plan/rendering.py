"""Renders conversations with the student's chat template before a run costs anything.

A conversation that the template refuses is rejected when the student is made. Here the user is told of it
before the teacher is paid, and too many of them are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stillhouse.console import console
from stillhouse.errors import ModelError
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers, teacher_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.corpus import Prompt
    from stillhouse.models import ChatTemplate, Message

RENDERED = 1000
"""Conversations that are rendered, evenly spaced; all of them where there are no more."""
SHOWN = 5
"""Refused conversations that are shown."""


def check_rendering(recipe: Recipe, prompts: Sequence[Prompt]) -> list[str]:
    """Warns of conversations that the student's chat template cannot render; a question gets an answer first.

    Returns:
        Place, id and reason of each.

    Raises:
        ModelError: more than `prompts.tolerated_rejects` of them cannot be rendered.
        ModelNotFoundError: the student's tokenizer does not exist.
    """
    from stillhouse.corpus import load_context

    chat = _student_chat(recipe)
    if chat is None:
        return []
    if not chat[1].end_marks(chat[0]):
        console.warn(
            "the student's chat template ends an answer with no token of its own: the student does not learn "
            "to stop in other programs; set student.template: teacher, or add an end token to the template"
        )
    contexts = [load_context(teacher) for teacher in all_teachers(recipe)]
    sample = prompts[:: -(-len(prompts) // RENDERED)]
    refused: list[tuple[str, ModelError]] = []
    for prompt in sample:
        messages = list(prompt.messages)
        if not prompt.is_finished:
            context = contexts[teacher_number(recipe, prompt.tags)]
            answer: Message = {"role": "assistant", "content": "x"}
            messages = [*context.for_student(messages), answer]
        try:
            chat[1].check(chat[0], messages, tools=prompt.tools)
        except ModelError as error:
            refused.append((f"{prompt.where or prompt.source} (prompt {prompt.id[:12]}): {error}", error))
    if not refused:
        return []
    share = f"{len(refused)} of {len(sample)} conversations"
    if len(sample) < len(prompts):
        share += f" (a sample of {len(prompts):,})"
    if len(refused) > recipe.prompts.tolerated_rejects * len(sample):
        place, error = refused[0]
        raise ModelError(
            f"the student's chat template cannot render {share}; the first: {place}", hint=error.hint
        ) from error
    console.warn(f"the student's chat template cannot render {share}; they will be rejected:")
    for place, _ in refused[:SHOWN]:
        console.warn(place)
    return [place for place, _ in refused]


def _student_chat(recipe: Recipe) -> tuple[PreTrainedTokenizerFast, ChatTemplate] | None:
    """The student's tokenizer and template; None where the recipe itself does not decide them."""
    from stillhouse.models import load_tokenizer, parse_reference

    teacher, student = recipe.teacher.model, recipe.student
    own = (student.tokenizer if student.init == "scratch" else student.model) or teacher
    if parse_reference(own).kind == "api":
        return None  # building the student raises the error
    tokenizer, template = load_tokenizer(own)
    if student.template == "teacher" and parse_reference(teacher).kind != "api":
        template = load_tokenizer(teacher)[1]
    return tokenizer, template
