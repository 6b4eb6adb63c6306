"""The LM head: from a hidden state to logits.

Separate from the model, so that logits can be computed for a few tokens at a time. A head has a matrix, a
bias, a constant factor and a soft cap; :func:`lm_head_of` refuses a model that computes its logits in any
other way.

Shapes: N tokens, D hidden size, V vocabulary (padding included).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class LMHead:
    """logits = softcap(scale · (W h + b)), where softcap(x) = c · tanh(x / c).

    Args:
        weight_VD: W; for training the parameter itself, so that it gets its gradient.
        bias_V: b, or None.
        softcap: c (Gemma 2), or None.
        scale: a constant factor (Cohere's ``logit_scale``, Granite's 1 / ``logits_scaling``).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def vocab_size(self) -> int:
        return self.weight_VD.shape[0]

    def to(self, device: torch.device) -> LMHead:
        """The head on ``device``; the same object if it is there already."""
        if self.weight_VD.device == device:
            return self
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return replace(self, weight_VD=self.weight_VD.to(device), bias_V=bias_V)

    def raw_logits(self, hidden_ND: Tensor, vocab_size: int | None = None) -> Tensor:
        """W h + b for the first ``vocab_size`` ids (default: all), in the dtype of ``hidden_ND``, [N, V]."""
        weight_VD = self.weight_VD[:vocab_size].to(hidden_ND.dtype)
        bias_V = None if self.bias_V is None else self.bias_V[:vocab_size].to(hidden_ND.dtype)
        return F.linear(hidden_ND, weight_VD, bias_V)

    def logits(self, hidden_ND: Tensor, vocab_size: int | None = None) -> Tensor:
        """Logits of the first ``vocab_size`` ids (default: all), in float32 at least, [N, V].

        The product runs in the dtype of ``hidden_ND``, all later steps in the wider one.
        """
        raw_NV = self.raw_logits(hidden_ND, vocab_size)
        return self.finish_logits(raw_NV.to(torch.promote_types(raw_NV.dtype, torch.float32)))

    def finish_logits(self, raw_NV: Tensor) -> Tensor:
        """Applies the factor, then the cap, to the product and bias of :meth:`raw_logits`."""
        if self.scale != 1.0:
            raw_NV = raw_NV * self.scale
        if self.softcap is not None:
            raw_NV = torch.tanh(raw_NV / self.softcap) * self.softcap
        return raw_NV


def lm_head_of(model: PreTrainedModel) -> LMHead:
    """The head of a causal language model from transformers, with the model's own parameters.

    Raises:
        ModelError: its logits differ from the model's on a few tokens.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output layer, so it is not a language model")
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)
    head = LMHead(
        weight_VD=layer.weight,  # pyright: ignore[reportArgumentType]
        bias_V=getattr(layer, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=1.0 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0,
    )
    _require_exact(model, head)
    return head


@torch.no_grad()
def _require_exact(model: PreTrainedModel, head: LMHead) -> None:
    """Checks the head against the model, since a configuration can have fields that this module ignores."""
    was_training = model.training
    model.eval()
    ids = torch.arange(4, device=head.weight_VD.device)[None] % head.vocab_size
    expected_NV = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden_ND = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    model.train(was_training)
    difference = (head.logits(hidden_ND).float() - expected_NV).abs().max().item()
    tolerance = 8 * torch.finfo(hidden_ND.dtype).eps * max(expected_NV.abs().max().item(), 1.0)
    if not difference <= tolerance:
        raise ModelError(
            f"the logits of {type(model).__name__} are not its output layer times its hidden states "
            f"(they differ by {difference:.3g})",
            hint="This architecture does more after its last layer than a bias, a factor or a soft cap.",
        )
