"""Hidden states and the output head of a model, apart, so that logits can be made a few at a time.

It knows the heads of transformers' causal language models: a matrix, perhaps a bias, a
constant scale, a soft cap. That these are all the parts is not assumed but checked on the
model's own logits (:func:`require_exact_head`).

Shapes: N tokens, D hidden size, V vocabulary (padding included).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class OutputHead:
    """What turns hidden states into logits: softcap(scale · (W h + b))."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @property
    def vocab_size(self) -> int:
        return self.weight_VD.shape[0]

    def logits(self, hidden_ND: Tensor, vocab: int) -> Tensor:
        """The first ``vocab`` logits, [N, vocab], in float32 whatever the model computes in."""
        weight = self.weight_VD[:vocab]
        logits_NV = hidden_ND.to(weight.device, weight.dtype) @ weight.T
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V[:vocab]
        logits_NV = logits_NV.float()
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def head_of(model: PreTrainedModel) -> OutputHead:
    """The output head of a causal language model (weights shared, not copied)."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head over a vocabulary")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    if str(config.model_type).startswith("granite"):
        scale = 1.0 / config.logits_scaling
    return OutputHead(
        weight_VD=layer.weight.detach(),
        bias_V=None if getattr(layer, "bias", None) is None else layer.bias.detach(),
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids_T: Tensor) -> Tensor:
    """What enters the head at each position of one document, [T, D], in the model's own type."""
    output = model.get_decoder()(input_ids=ids_T[None].to(model.device), use_cache=False)
    return output.last_hidden_state[0]


@torch.no_grad()
def require_exact_head(model: PreTrainedModel, head: OutputHead, ids_T: Tensor) -> None:
    """Raises ModelError unless ``head`` over the hidden states gives the model's own logits.

    Args:
        ids_T: any text of at least one token; its last position is compared.
    """
    own_V = model(input_ids=ids_T[None].to(model.device), use_cache=False, logits_to_keep=1).logits[0, -1]
    ours_V = head.logits(hidden_states(model, ids_T)[-1:], head.vocab_size)[0]
    error = (own_V.float() - ours_V).abs().max().item()
    allowed = 1e-3 if own_V.dtype == torch.float32 else 0.05
    if not error <= allowed * max(1.0, own_V.float().abs().max().item()):
        raise ModelError(
            f"the output head of {type(model).__name__} has a part that is not known here: "
            f"its own logits differ from ours by up to {error:.3g}",
        )
