"""The language model inside a model that also reads images or sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model in ``model``, with its weights; ``model`` itself if it is one.

    Its class and configuration are those of a text model that transformers saves, so that a student of it is
    one too. The other parts (a vision tower) are dropped.

    Raises:
        ModelError: transformers has no such class, or its logits differ from those of ``model``.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.initialization import no_init_weights

    text_config = model.config.get_text_config()
    if text_config is model.config:
        return model
    if type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"the text part of a {model.config.model_type} model is not supported")
    # The outer configuration decides, and what it decided shows in the weights.
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    text_config.tie_word_embeddings = head.weight is embedding.weight
    text_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)]
    with no_init_weights(), torch.device("meta"):
        text = text_class._from_config(text_config, attn_implementation=model.config._attn_implementation)
    setattr(text, text.base_model_prefix, model.get_decoder())
    text.set_output_embeddings(head)
    text.generation_config = model.generation_config
    text.eval()
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        difference = text(ids, use_cache=False).logits - model.eval()(ids, use_cache=False).logits
    if difference.abs().max() > 0:
        raise ModelError(f"the text part of a {model.config.model_type} model computes something else")
    return text
