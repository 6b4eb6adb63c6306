"""The shapes of teacher and student, from configuration files and headers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from ..recipe import Student
from .costs import Shape, gated_layer

if TYPE_CHECKING:
    from ..models import ModelFacts


def shape_of(facts: ModelFacts) -> Shape:
    """The shape that a model's configuration and header tell.

    Raises:
        RecipeError: they do not tell enough.
    """
    shape = _shape_of_config(facts.config, facts.vocab_size, facts.reference)
    if facts.parameters is None:
        return shape
    body = facts.parameters - shape.head * (1 if shape.tied else 2)
    return replace(shape, layer_parameters=body / shape.layers) if body > 0 else shape


def _shape_of_config(config: dict[str, Any], vocab: int | None, name: str) -> Shape:
    text = config.get("text_config", config)
    try:
        hidden, heads = text["hidden_size"], text["num_attention_heads"]
        intermediate = text.get("intermediate_size") or 4 * hidden
        head_dim = text.get("head_dim") or hidden // heads
        layer = gated_layer(hidden, intermediate, heads, text.get("num_key_value_heads") or heads, head_dim)
        return Shape(
            layers=text["num_hidden_layers"],
            layer_parameters=layer,
            hidden=hidden,
            intermediate=intermediate,
            vocab=text.get("vocab_size") or vocab or 0,
            attention_width=heads * head_dim,
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise RecipeError(f"no plan for {name}: its configuration does not say {error.args[0]}") from error


def student_shape(student: Student, parent: Shape | None, *, vocab: int | None) -> Shape:
    """What the student will look like.

    Args:
        parent: of the starting weights, or of the model to prune.
        vocab: of the tokenizer, for a scratch student whose configuration leaves it open.
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
