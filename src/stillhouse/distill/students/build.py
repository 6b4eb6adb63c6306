"""Builds the student of a recipe: pretrained, from scratch, or pruned from a parent.

LoRA adapters are added afterwards (``lora.prepare_lora``). A student whose tokenizer differs from the
teacher's can learn the teacher's text, or its distributions over spans
(:mod:`stillhouse.distill.data.token_alignment`); :func:`require_same_tokenizer` is for objectives that need
the teacher's probabilities of the student's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.console import console
from stillhouse.distill.students import prune_depth, prune_width
from stillhouse.distill.students.heal import can_heal, heal
from stillhouse.distill.students.importance import (
    block_influence,
    calibration_sample,
    massive_activation_layers,
    record_residual_stream,
    width_importance,
)
from stillhouse.distill.students.save import save_student
from stillhouse.distill.students.scratch import build_scratch
from stillhouse.distill.students.train_tokenizer import train_tokenizer
from stillhouse.errors import RecipeError, TokenizerMismatchError
from stillhouse.models import (
    ChatTemplate,
    Weights,
    load_tokenizer,
    load_weights,
    same_tokenizer,
    tokenizer_difference,
)
from stillhouse.recipe import Student

if TYPE_CHECKING:
    from torch import Tensor

    from stillhouse.distill.data.documents import Document

__all__ = ["BuiltStudent", "build_student", "require_same_tokenizer", "save_student"]


@dataclass(frozen=True)
class BuiltStudent:
    """An untrained student.

    Args:
        model: float32, in evaluation mode.
        facts: how it was made, as JSON values: `init`, `parameters`, `layers`; after pruning also
            `parent_layers`, `influence` (one number per layer of the parent), `massive` (its layers with
            massive activations), `keep`, `healed` (one entry per healed gap), `intermediate`, `heads`,
            `hidden`, `calibration_tokens`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    facts: dict[str, Any]


def build_student(
    settings: Student,
    *,
    teacher: Weights | None,
    calibration: Sequence[Document],
    seed: int,
    texts: Iterable[str] = (),
) -> BuiltStudent:
    """Builds the student of the recipe; the same settings, text and seed give the same bits.

    Args:
        teacher: None if the teacher is an API.
        calibration: training documents; only for `prune`.
        texts: of the training exchanges; only for `vocabulary`.

    Raises:
        RecipeError: a setting that this kind of student needs is missing or impossible.
    """
    match settings.init:
        case "pretrained":
            start = _parent(settings, None)
            model, tokenizer, template, facts = start.model, start.tokenizer, start.template, {}
        case "scratch":
            tokenizer, template = _scratch_tokenizer(settings, teacher, texts)
            model, facts = build_scratch(settings.config, tokenizer, seed), {}
        case "prune":
            start = _parent(settings, teacher)
            tokenizer, template = start.tokenizer, start.template
            model, facts = prune(start.model, settings, calibration, seed)
    if settings.template == "teacher":
        if teacher is None:
            raise RecipeError("student.template: the chat template of an API teacher is not known; use `own`")
        template = teacher.template
    described = {
        "init": settings.init,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "vocab_size": model.config.vocab_size,
    }
    return BuiltStudent(model, tokenizer, template, {**described, **facts})


def prune(
    parent: PreTrainedModel, settings: Student, calibration: Sequence[Document], seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Removes layers first (and heals), then prunes the width by importance in the remaining model.

    Returns:
        The pruned model and the facts of :class:`BuiltStudent`. The parent is not changed.

    Raises:
        RecipeError: no part to prune is set, or more than the model has.
        EmptyCorpusError: there is no calibration text.
    """
    cuts_depth = settings.layers is not None or settings.keep is not None
    cuts_width = any(size is not None for size in (settings.intermediate, settings.heads, settings.hidden))
    if not cuts_depth and not cuts_width:
        raise RecipeError(
            "student: init is `prune`, but no part to prune is set",
            hint="Set student.layers, keep, intermediate, heads or hidden.",
        )
    sample = calibration_sample(calibration, settings.calibration_tokens, seed)
    model, facts = parent, {"calibration_tokens": sum(len(ids) for ids in sample)}
    if cuts_depth:
        model, depth_facts = _prune_depth(parent, settings, sample)
        facts |= depth_facts
    if cuts_width:
        model, width_facts = _prune_width(model, settings, sample)
        facts |= width_facts
    return model, facts


def require_same_tokenizer(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> None:
    """Raises an error if token ids of teacher and student mean different tokens.

    Padded vocabulary sizes may differ (151,936 and 152,064 in the Qwen2.5 family): only the tokenizers are
    compared.

    Raises:
        TokenizerMismatchError: the tokenizers differ; the message has the first difference.
    """
    if same_tokenizer(teacher, student):
        return
    raise TokenizerMismatchError(
        "teacher and student have different tokenizers, so the student cannot learn the teacher's "
        f"distributions token by token: {tokenizer_difference(teacher, student)}",
        hint="Set objective.align: spans (docs/other-tokenizers.md), use a student of the same family, or "
        "train on the text alone: objective.kind=cross_entropy.",
    )


def _parent(settings: Student, teacher: Weights | None) -> Weights:
    if settings.model is not None:
        return load_weights(settings.model)
    if teacher is None:
        raise RecipeError(
            f"student.model is needed for init `{settings.init}`"
            + ("" if settings.init == "pretrained" else ": the teacher is an API, without weights to prune")
        )
    return teacher


def _scratch_tokenizer(
    settings: Student, teacher: Weights | None, texts: Iterable[str]
) -> tuple[PreTrainedTokenizerFast, ChatTemplate]:
    if settings.tokenizer is not None:
        return load_tokenizer(settings.tokenizer)
    if teacher is None:
        raise RecipeError("student.tokenizer is needed: the tokenizer of an API teacher is not known")
    if settings.vocabulary is not None:
        return train_tokenizer(texts, settings.vocabulary, like=teacher.tokenizer), teacher.template
    return teacher.tokenizer, teacher.template


def _prune_depth(
    parent: PreTrainedModel, settings: Student, sample: Sequence[Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    stream = record_residual_stream(parent, sample)
    influence, massive = block_influence(stream.hidden_ND), massive_activation_layers(stream.hidden_ND)
    if settings.keep is not None:
        keep = prune_depth.check_keep(settings.keep, len(influence))
    else:
        assert settings.layers is not None
        keep = prune_depth.most_influence(influence, settings.layers, massive)
    model = prune_depth.prune_depth(parent, keep)
    facts: dict[str, Any] = {
        "parent_layers": len(influence),
        "influence": influence,
        "massive": massive,
        "keep": keep,
        "healed": [],
    }
    if settings.heal and can_heal(model):
        facts["healed"] = [run.as_dict() for run in heal(model, keep, stream)]
    elif settings.heal:
        console.warn(
            f"student.heal: not possible for {model.config.model_type}, whose MLP is followed by a norm"
        )
    return model, facts


def _prune_width(
    model: PreTrainedModel, settings: Student, sample: Sequence[Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    importance = width_importance(model, sample)
    cut = prune_width.select_width(
        model, importance, intermediate=settings.intermediate, heads=settings.heads, hidden=settings.hidden
    )
    narrow = prune_width.prune_width(model, cut)
    if cut.channels is not None:
        prune_width.correct_norms(narrow, importance.energy_D, cut.channels)
    return narrow, {name: getattr(settings, name) for name in ("intermediate", "heads", "hidden")}
