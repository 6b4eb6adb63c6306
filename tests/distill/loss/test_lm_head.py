"""A head taken from a model gives the model's own logits, however it makes them; others are refused."""

import pytest
import torch
from tiny_training import SIZES, VOCABULARY, documents_of
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PhiConfig,
    PhiForCausalLM,
)

from stillhouse.distill.loss.lm_head import lm_head_of
from stillhouse.errors import ModelError

SPECIALS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS = {
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=2.0)),
    "factor": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "divisor": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "bias": lambda: PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            **SPECIALS,
        )
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models_own(name, dtype):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    if name == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    ids_1T = torch.from_numpy(documents_of([12])[0].ids.astype("int64"))[None]
    with torch.no_grad():
        expected_TV = model(input_ids=ids_1T).logits[0].float()
        hidden_TD = model.get_decoder()(input_ids=ids_1T).last_hidden_state[0]
        logits_TV = lm_head_of(model).logits(hidden_TD)
    assert logits_TV.dtype == torch.float32
    torch.testing.assert_close(logits_TV, expected_TV, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)


def test_the_weight_is_the_models_own_parameter():
    model = MODELS["tied"]()
    assert lm_head_of(model).weight_VD is model.get_input_embeddings().weight


def test_a_model_that_does_more_after_its_last_layer_is_refused():
    class Shifted(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 0.5
            return output

    with pytest.raises(ModelError, match=r"differ by 0\.5"):
        lm_head_of(Shifted(LlamaConfig(**SIZES)))


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="no output layer"):
        lm_head_of(LlamaModel(LlamaConfig(**SIZES)))
