"""Depth pruning: chooses the layers to keep, and builds a model of only those.

Layers are ranked by block influence, after those with massive activations, which are kept first (see
``importance``). Influence measures how far a layer turns the residual stream, not what its absence costs in
quality; ``heal`` then repairs part of the damage, and training the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from transformers import PreTrainedModel

from stillhouse.distill.students.decoder import layer_prefix, layers_of, per_layer_entries, rebuild
from stillhouse.errors import RecipeError


def most_influence(influence: Sequence[float], layers: int, first: Collection[int] = ()) -> list[int]:
    """The indices of the ``layers`` layers to keep: those of greatest influence, in model order.

    Of equal layers the later is removed. Layers in ``first`` are kept before all others.

    Raises:
        RecipeError: the model does not have that many layers.
    """
    if not 1 <= layers <= len(influence):
        raise RecipeError(f"student.layers: cannot keep {layers} layers: the model has {len(influence)}")
    ranked = sorted(range(len(influence)), key=lambda layer: (layer not in first, -influence[layer], layer))
    return sorted(ranked[:layers])


def check_keep(keep: Sequence[int], layers: int) -> list[int]:
    """Returns ``keep`` if it lists existing layers, each once, in order.

    Raises:
        RecipeError: it does not.
    """
    wrong = [layer for layer in keep if not 0 <= layer < layers]
    if wrong:
        raise RecipeError(
            f"student.keep: there is no layer {wrong[0]}; the model has layers 0 to {layers - 1}"
        )
    if not keep or list(keep) != sorted(set(keep)):
        raise RecipeError("student.keep: list each layer to keep once, in order, e.g. [0, 1, 5, 7]")
    return list(keep)


def removed_runs(keep: Sequence[int], layers: int) -> list[tuple[int, int]]:
    """The removed layers as runs ``(first, end)``; ``end`` is the next layer that is kept.

    >>> removed_runs([0, 3, 4], 6)
    [(1, 3), (5, 6)]
    """
    edges = [-1, *keep, layers]
    return [(a + 1, b) for a, b in itertools.pairwise(edges) if b > a + 1]


def prune_depth(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A copy of ``model`` with only the layers in ``keep``, renumbered from 0."""
    layers_of(model)
    prefix = layer_prefix(model)
    new_index = {old: new for new, old in enumerate(keep)}
    state = {}
    for name, value in model.state_dict().items():
        if not name.startswith(prefix):
            state[name] = value
            continue
        index, rest = name.removeprefix(prefix).split(".", 1)
        if int(index) in new_index:
            state[f"{prefix}{new_index[int(index)]}.{rest}"] = value
    changes = {"num_hidden_layers": len(keep), **per_layer_entries(model.config, keep)}
    return rebuild(model, changes, state)
