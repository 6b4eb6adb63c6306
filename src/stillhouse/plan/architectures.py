"""Tries the architectures of student and teacher on tiny random copies, before a teacher is paid.

A copy with the student's layers and settings, but few and narrow ones, goes through what a run does with the
student: a step of training (packed, with its adapters), saving, loading again, sampling. What a copy cannot
show, such as the memory of a pass, stays for the stages.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError, RecipeError, StillhouseError
from stillhouse.recipe import Lora, Objective, Recipe, Train
from stillhouse.recipe.teachers import all_teachers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def try_student(recipe: Recipe) -> None:
    """Trains a tiny copy of the student, saves it and loads it again; samples it where it learns on-policy.

    Raises:
        RecipeError: `student.config` is invalid, or adapters name layers that the student does not have.
        ModelError: transformers has no such architecture, or a step fails for it.
        ModelNotFoundError: the model does not exist.
        MissingExtraError: peft is not installed.
    """
    from stillhouse.distill import scratch_settings

    student = recipe.student
    if student.init == "scratch":
        name, config = "student.config", scratch_settings(student.config)
    else:
        name = student.model or recipe.teacher.model
        if name.startswith("api:"):
            return  # building the student raises the error
        config = _configuration(name)
    entries = json.dumps(config.to_dict(), sort_keys=True, default=str)
    _try_student(
        name,
        _Configuration(config, entries),
        student.lora,
        prunes=student.init == "prune",
        samples=recipe.on_policy is not None,
    )


def try_teachers(recipe: Recipe) -> None:
    """Samples tiny copies of the teachers that run here with torch.

    Raises:
        ModelError: transformers has no such architecture, or cannot sample from it here.
        ModelNotFoundError: a model does not exist.
    """
    from stillhouse.models import parse_reference

    if not recipe.needs_answers:
        return
    for teacher in all_teachers(recipe):
        reference = parse_reference(teacher.model)
        if reference.kind == "api" or reference.is_gguf:
            continue
        copy = _tiny_copy(_configuration(teacher.model))
        if copy is not None:
            _try_sampling(teacher.model, copy)


class _Configuration:
    """A configuration that is compared by its entries."""

    def __init__(self, config: PreTrainedConfig, entries: str) -> None:
        self.config, self.entries = config, entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Configuration) and other.entries == self.entries

    def __hash__(self) -> int:
        return hash(self.entries)


def _configuration(reference: str) -> PreTrainedConfig:
    """The configuration of a model's text part.

    Raises:
        ModelError: transformers has no causal language model of its kind.
    """
    import transformers

    from stillhouse.models import describe

    info = describe(reference)
    model_type = str(info.model_type)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"{reference}: transformers {transformers.__version__} has no architecture {model_type!r}",
            hint="Use another model, or a version of transformers that has it.",
        )
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_dict(info.config).get_text_config()
    except Exception as error:  # configurations are checked by third-party code of every kind
        raise ModelError(f"{reference}: config.json is invalid: {error}") from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{reference}: a {model_type} model is not a causal language model")
    return config


def _tiny_copy(config: PreTrainedConfig) -> PreTrainedModel | None:
    """A tiny copy; None where the configuration allows none, which says nothing about the model itself."""
    import transformers

    from stillhouse.models import tiny_copy

    model_class: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        return tiny_copy(model_class, config)
    except ModelError:
        return None


@functools.lru_cache(maxsize=64)
def _try_student(
    name: str, configuration: _Configuration, lora: Lora | None, *, prunes: bool, samples: bool
) -> None:
    from stillhouse.distill import layers_of, prepare_lora

    model = _tiny_copy(configuration.config)
    if model is None:
        return
    if prunes:
        layers_of(model)
    if samples:
        _try_sampling(name, model)
    model = prepare_lora(model, lora, seed=0)
    with _reported(name, "trained"):
        _try_training(name, model)
    with _reported(name, "saved and loaded again"):
        _try_saving(name, model)


def _try_sampling(name: str, model: PreTrainedModel) -> None:
    from stillhouse.models import Sampling, sample

    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    with _reported(name, "sampled"):
        sample(model, prompts, [Sampling(temperature=0, max_tokens=4)] * 2, ends=set())


def _try_training(name: str, model: PreTrainedModel) -> None:
    """A step of training on three documents, in one pass if the architecture can be packed."""
    import numpy as np

    from stillhouse.distill import Document, Learner, Step

    documents = [
        Document(str(length), np.arange(length, dtype=np.int32) + 1, np.arange(length) > 0)
        for length in (5, 12, 23)
    ]
    train = Train(dtype="float32")
    learner = Learner(model, documents, None, Objective(kind="cross_entropy"), train)
    learner.backward(Step(0, 0, (0, 1, 2), 40))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained):
        raise ModelError(f"{name}: no parameter of a {model.config.model_type} student gets a gradient")


def _try_saving(name: str, model: PreTrainedModel) -> None:
    """Saves the model with its adapters merged, and compares the logits of what transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM

    from stillhouse.distill import merged

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)  # the half of each adapter that starts at zero
    ids = torch.arange(1, 9)[None]
    with TemporaryDirectory() as temporary:
        merged(model).save_pretrained(temporary)
        loaded: Any = AutoModelForCausalLM.from_pretrained(temporary)
    with torch.no_grad():
        difference = (loaded.eval()(ids).logits - model.eval()(ids).logits).abs().max()
    if not difference <= 1e-4:
        raise ModelError(f"{name}: a {model.config.model_type} student is not the same after saving")


@contextmanager
def _reported(name: str, action: str) -> Iterator[None]:
    """Reports any error of transformers' own code as one about the architecture."""
    from stillhouse.models import quiet_transformers

    try:
        with quiet_transformers():
            yield
    except StillhouseError as error:
        if isinstance(error, RecipeError):
            raise
        raise ModelError(f"{name} cannot be {action}: {error}", hint=error.hint) from error
    except Exception as error:  # third-party code fails in any way
        raise ModelError(
            f"{name} cannot be {action}: a small copy of it fails: {type(error).__name__}: {error}"[:400],
            hint="Use a model of another architecture.",
        ) from error
