"""The on-policy stage: tokenized prompts, teachers and verifiers for ``train_on_policy``.

Student and teacher read the same conversation (a teacher with a private context: after that), each in its
own chat template. The answer's tokens are the same for both, so their tokenizers must be identical. Verifiers
read the answer as text, separate from its thoughts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import EmptyCorpusError
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.teacher_targets import training_signal
from stillhouse.recipe.teachers import all_teachers, teacher_number, teacher_shares

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.corpus import Prompt
    from stillhouse.distill import OffPolicyData, RewardFunction, TokenizedPrompt
    from stillhouse.models import Weights
    from stillhouse.verifiers import Verifiers


def run_on_policy(run: RunContext) -> dict[str, Any]:
    """Trains the student on its own samples and saves it; returns the stage's facts for the manifest."""
    from stillhouse.distill import (
        OnPolicyConfig,
        prepare_lora,
        require_same_tokenizer,
        save_student,
        train_on_policy,
    )
    from stillhouse.models import has_stop, load_weights
    from stillhouse.verifiers import open_verifiers

    settings = run.recipe.on_policy
    assert settings is not None
    weights = load_weights(str(run.offline_student) if run.recipe.learns_offline else run.start)
    teachers = [run.weights_of(n) for n in range(len(all_teachers(run.recipe)))] if settings.teacher else []
    for teacher in teachers:
        require_same_tokenizer(teacher.tokenizer, weights.tokenizer)
    prompts = tokenized_prompts(run, weights)
    model = prepare_lora(weights.model, run.recipe.student.lora, seed=run.recipe.seed)
    config = OnPolicyConfig(
        settings=settings,
        objective=run.objective,
        train=run.recipe.train,
        seed=run.recipe.seed,
        end_ids=weights.end_ids,
        stopping_criterion=lambda ids: has_stop(weights.tokenizer, ids, weights.template.stops),
        pass_rates=_pass_rates(run),
    )
    with contextlib.ExitStack() as stack:
        verifiers = stack.enter_context(open_verifiers(run.recipe.verifiers)) if settings.reward else None
        result = train_on_policy(
            model,
            prompts,
            config,
            run.directory / "on_policy",
            teachers=[teacher.model for teacher in teachers],
            reward_function=None if verifiers is None else verifier_reward(verifiers, weights),
            off_policy=_off_policy_data(run),
        )
    save_student(model, weights.tokenizer, weights.template, run.directory / "student")
    facts = {
        "questions": len(prompts),
        "rounds": result.rounds,
        "tokens": result.tokens,
        "train_seconds": round(result.seconds, 1),
    }
    return facts if verifiers is None else facts | {"verifier_failures": dict(verifiers.failures)}


def verifier_reward(verifiers: Verifiers, weights: Weights) -> RewardFunction:
    """A reward function that decodes answers, without end mark or stop text, and passes them to verifiers."""
    from stillhouse.models import PromptEncoder
    from stillhouse.verifiers import Answer

    encoder = PromptEncoder(weights.tokenizer, weights.template, None, seed=0)

    def reward(samples: Sequence[tuple[TokenizedPrompt, list[int]]]) -> list[float]:
        answers = []
        for tokenized, ids in samples:
            answer, thoughts, _ = encoder.read_answer(tokenized.ids, ids, weights.template.stops)
            prompt: Prompt = tokenized.metadata
            answers.append(Answer(answer, thoughts, prompt.tags, prompt.question))
        return [score.value for score in verifiers.score(answers)]

    return reward


def tokenized_prompts(run: RunContext, weights: Weights) -> list[TokenizedPrompt]:
    """The training prompts as student and teachers read them; warns of those too long for a context."""
    from stillhouse.distill import TeacherPrompt, TokenizedPrompt

    settings, recipe = run.recipe.on_policy, run.recipe
    assert settings is not None
    prompts, skipped = [], 0
    for prompt in run.prompts[0]:
        messages = run.context_of(prompt).for_student(prompt.question)
        ids = weights.template.encode_prompt(weights.tokenizer, messages)
        shares = teacher_shares(recipe, teacher_number(recipe, prompt.tags)) if settings.teacher else {}
        teacher_prompts = tuple(
            TeacherPrompt(n, weight, _teacher_ids(run, n, prompt)) for n, weight in shares.items()
        )
        lengths = [(len(ids), weights), *((len(t.ids), run.weights_of(t.teacher)) for t in teacher_prompts)]
        if any(length + settings.max_tokens > _context_length(reader.model) for length, reader in lengths):
            skipped += 1
        else:
            prompts.append(TokenizedPrompt(prompt.id, ids, teacher_prompts, prompt))
    if skipped:
        console.warn(
            f"{skipped} of {skipped + len(prompts)} prompts are left out: with on_policy.max_tokens "
            f"({settings.max_tokens}) they do not fit the context of student or teacher"
        )
    if not prompts:
        raise EmptyCorpusError(
            "no prompt is left for the student to answer",
            hint="Lower on_policy.max_tokens, or give shorter prompts.",
        )
    return prompts


def _teacher_ids(run: RunContext, number: int, prompt: Prompt) -> list[int]:
    """A prompt as a teacher reads it: after its private context, if it has one, else as the student does."""
    context, reader = run.contexts[number], run.weights_of(number)
    messages = run.context_of(prompt).for_student(prompt.question)
    if context.private:
        messages = context.for_teacher(prompt.question)
    return reader.template.encode_prompt(reader.tokenizer, messages)


def _context_length(model: PreTrainedModel) -> int:
    """The longest sequence whose samples have the probabilities that a pass over the whole computes."""
    from stillhouse.models import rotation_switch

    # An answer that grows beyond the switch is sampled with both rotations, and learned with one.
    switch = rotation_switch(model.config)
    return switch or getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def _pass_rates(run: RunContext) -> dict[str, float]:
    """The share of the teacher's answers to each prompt that were right, if they were scored."""
    from stillhouse.corpus import read_pass_rates

    return {} if run.recipe.select is None else read_pass_rates(run.learned)


def _off_policy_data(run: RunContext) -> OffPolicyData | None:
    from stillhouse.distill import OffPolicyData

    settings = run.recipe.on_policy
    if settings is None or settings.off_policy == 0:
        return None
    return OffPolicyData(run.training_documents, training_signal(run))
