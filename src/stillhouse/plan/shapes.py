"""Shapes of teacher and student, from configuration files and headers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RecipeError
from stillhouse.plan.cost_formulas import Shape, gated_layer
from stillhouse.recipe import Student

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo


def shape_of(info: ModelInfo) -> Shape:
    """The shape of a model, from its configuration and header.

    Raises:
        RecipeError: the configuration is incomplete or invalid.
    """
    shape = _shape_of_config(info.config, info.vocab_size, info.reference)
    if info.parameters is None:
        return shape
    body = info.parameters - shape.head * (1 if shape.tied else 2)
    return replace(shape, layer_parameters=body / shape.layers) if body > 0 else shape


def _shape_of_config(config: dict[str, Any], vocab: int | None, name: str) -> Shape:
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise RecipeError(f"cannot plan for {name}: its text_config is not a mapping but {text!r:.60}")

    def size(key: str, otherwise: int | None = None) -> int:
        value = text.get(key)
        value = otherwise if value is None else value
        if value is None:
            raise RecipeError(f"cannot plan for {name}: its configuration lacks {key}")
        if type(value) is not int or value < 1:
            raise RecipeError(f"cannot plan for {name}: {key} cannot be {value!r:.60}")
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    intermediate = size("intermediate_size", 4 * hidden)
    head_dim = size("head_dim", hidden // heads)
    layer = gated_layer(hidden, intermediate, heads, size("num_key_value_heads", heads), head_dim)
    return Shape(
        layers=size("num_hidden_layers"),
        layer_parameters=layer,
        hidden=hidden,
        intermediate=intermediate,
        vocab=size("vocab_size", vocab) if text.get("vocab_size") or vocab else 0,
        attention_width=heads * head_dim,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def student_shape(student: Student, parent: Shape | None, *, vocab: int | None) -> Shape:
    """The shape that the student will have.

    Args:
        parent: shape of the starting weights, or of the model to prune.
        vocab: size of the tokenizer's vocabulary, for a scratch student whose configuration omits it.
    """
    if student.init == "scratch":
        return _shape_of_config(student.config, vocab, "student.config")
    assert parent is not None
    if student.init == "pretrained":
        return parent
    kept = len(student.keep) if student.keep is not None else student.layers
    hidden = (student.hidden or parent.hidden) / parent.hidden
    mlp = (student.intermediate or parent.intermediate) / parent.intermediate
    mlp_share = 3 * parent.hidden * parent.intermediate / parent.layer_parameters
    return replace(
        parent,
        layers=kept or parent.layers,
        layer_parameters=parent.layer_parameters * hidden * (1 - mlp_share + mlp_share * mlp),
        hidden=student.hidden or parent.hidden,
        intermediate=student.intermediate or parent.intermediate,
    )
