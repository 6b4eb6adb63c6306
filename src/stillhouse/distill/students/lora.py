"""LoRA adapters (Hu et al. 2021) through peft: injected before training, merged when the student is saved.

Adapters go into the model's own linear layers, so it stays the same class with the same ``lm_head`` and
decoder, and training works unchanged. Only the merged model is saved; adapters alone are not exported.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.errors import MissingExtraError, RecipeError
from stillhouse.recipe import Lora
from stillhouse.recipe.suggest import did_you_mean


def prepare_lora(model: PreTrainedModel, settings: Lora | None, *, seed: int) -> PreTrainedModel:
    """Injects adapters into ``model`` in place; they are trained, everything else is frozen.

    The update starts at zero, so the model's output does not change. Without settings the model is returned
    unchanged.

    Args:
        seed: for the random half of each adapter; the other half is zero.

    Raises:
        RecipeError: a name in ``targets`` is not a linear layer of the decoder. The losses read the output
            layer's weight itself, so an adapter there would learn nothing.
        MissingExtraError: peft is not installed.
    """
    if settings is None:
        return model
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "student.lora needs the package peft", hint='Install it with: pip install "stillhouse[lora]"'
        ) from error
    _check_targets(model, settings)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (annotated int, any number works)
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    return model


def has_adapters(model: nn.Module) -> bool:
    """Whether ``model`` has adapters from :func:`prepare_lora`."""
    return hasattr(model, "peft_config")


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of ``model`` with its adapters, if any, merged into the weights, without any module of peft."""
    plain = copy.deepcopy(model)
    if not has_adapters(model):
        return plain
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in plain.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, module.get_base_layer())
    del plain.peft_config
    return plain.requires_grad_(True)


def _check_targets(model: PreTrainedModel, settings: Lora) -> None:
    head = model.get_output_embeddings()
    linears = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for target in settings.targets:
        if target not in linears:
            raise RecipeError(
                f"student.lora.targets: the student's decoder has no linear layer named {target!r}",
                hint=did_you_mean(target, linears) or f"It has {', '.join(sorted(linears))}.",
            )
