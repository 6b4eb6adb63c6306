"""The stage in which the student answers prompts itself: what is asked, who scores, what the teacher reads.

The student and the teacher read the same conversation (a teacher with a context of its own: after that),
each in its own chat template; the answer's tokens are the same for both, so their tokenizers must be one.
Verifiers read the answer as text, thoughts apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import EmptyCorpusError
from stillhouse.pipeline.run_context import RunContext
from stillhouse.recipe.teachers import all_teachers, teacher_number, teacher_shares

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.corpus import Prompt
    from stillhouse.distill import OffPolicyData, RewardFunction, TokenizedPrompt
    from stillhouse.models import Weights
    from stillhouse.verifiers import Verifiers


def learn_from_samples(run: RunContext) -> dict[str, Any]:
    """Trains the student on its own samples and saves it; the facts of the stage."""
    from stillhouse.distill import prepare_lora, require_same_tokenizer, save_student, train_on_policy
    from stillhouse.models import has_stop, load_weights
    from stillhouse.verifiers import open_verifiers

    settings = run.recipe.on_policy
    assert settings is not None
    weights = load_weights(str(run.offline_student) if run.recipe.learns_offline else run.start)
    teachers = [run.weights_of(n) for n in range(len(all_teachers(run.recipe)))] if settings.teacher else []
    for teacher in teachers:
        require_same_tokenizer(teacher.tokenizer, weights.tokenizer)
    asked = questions(run, weights)
    model = prepare_lora(weights.model, run.recipe.student.lora, seed=run.recipe.seed)
    with contextlib.ExitStack() as stack:
        verifiers = stack.enter_context(open_verifiers(run.recipe.verifiers)) if settings.reward else None
        result = train_on_policy(
            model,
            asked,
            teachers=[teacher.model for teacher in teachers],
            score=None if verifiers is None else scorer(verifiers, weights),
            ends=weights.end_ids,
            stopped=lambda ids: has_stop(weights.tokenizer, ids, weights.template.stops),
            objective=run.objective,
            settings=settings,
            train=run.recipe.train,
            directory=run.directory / "on_policy",
            seed=run.recipe.seed,
            off_policy=_corpus(run),
            pass_rates=_pass_rates(run),
        )
    save_student(model, weights.tokenizer, weights.template, run.directory / "student")
    facts = {
        "questions": len(asked),
        "rounds": result.rounds,
        "tokens": result.tokens,
        "train_seconds": round(result.seconds, 1),
    }
    return facts if verifiers is None else facts | {"verifier_failures": dict(verifiers.failures)}


def scorer(verifiers: Verifiers, weights: Weights) -> RewardFunction:
    """Token ids to rewards: the answer's text without its end mark or stop text, its thoughts apart."""
    from stillhouse.corpus import assistant_message
    from stillhouse.models import cut_at_stop
    from stillhouse.verifiers import Answer

    def score(answers: Sequence[tuple[TokenizedPrompt, list[int]]]) -> list[float]:
        said = []
        for question, ids in answers:
            text = str(weights.tokenizer.decode(ids, skip_special_tokens=True))
            message = assistant_message(cut_at_stop(text, weights.template.stops)[0], None)
            prompt: Prompt = question.content
            thoughts = message.get("reasoning_content")
            said.append(Answer(message["content"], thoughts, prompt.tags, prompt.question))
        return [verdict.value for verdict in verifiers.score(said)]

    return score


def questions(run: RunContext, weights: Weights) -> list[TokenizedPrompt]:
    """The training prompts as both sides read them; those too long for the context are left out, and said."""
    from stillhouse.distill import TeacherPrompt, TokenizedPrompt

    settings, recipe = run.recipe.on_policy, run.recipe
    assert settings is not None
    found, skipped = [], 0
    for prompt in run.prompts[0]:
        asked = run.context_of(prompt).for_student(prompt.question)
        ids = weights.template.encode_prompt(weights.tokenizer, asked)
        taught = teacher_shares(recipe, teacher_number(recipe, prompt.tags)) if settings.teacher else {}
        teacher_prompts = tuple(
            TeacherPrompt(n, weight, _read(run, n, prompt)) for n, weight in taught.items()
        )
        rooms = [
            (ids, weights),
            *((reading.ids, run.weights_of(reading.teacher)) for reading in teacher_prompts),
        ]
        if any(len(read) + settings.max_tokens > _context_length(reader.model) for read, reader in rooms):
            skipped += 1
        else:
            found.append(TokenizedPrompt(prompt.id, ids, teacher_prompts, prompt))
    if skipped:
        console.warn(
            f"{skipped} of {skipped + len(found)} prompts leave no room for on_policy.max_tokens "
            f"({settings.max_tokens}) in the context of student or teacher, and are not asked"
        )
    if not found:
        raise EmptyCorpusError(
            "no prompt is left for the student to answer",
            hint="Lower on_policy.max_tokens, or give shorter prompts.",
        )
    return found


def _read(run: RunContext, number: int, prompt: Prompt) -> list[int]:
    """A prompt as a teacher reads it: after a private context of its own, else as the student does."""
    context, reader = run.contexts[number], run.weights_of(number)
    asked = run.context_of(prompt).for_student(prompt.question)
    if context.private:
        asked = context.for_teacher(prompt.question)
    return reader.template.encode_prompt(reader.tokenizer, asked)


def _context_length(model: PreTrainedModel) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def _pass_rates(run: RunContext) -> dict[str, float]:
    """How often the teacher's answers to each prompt were right, where they were scored."""
    from stillhouse.corpus import read_pass_rates

    return {} if run.recipe.select is None else read_pass_rates(run.learned)


def _corpus(run: RunContext) -> OffPolicyData | None:
    from stillhouse.distill import OffPolicyData

    settings = run.recipe.on_policy
    if settings is None or settings.off_policy == 0:
        return None
    return OffPolicyData(run.training_documents, run.signal)
