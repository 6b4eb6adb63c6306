"""Saved students as others read them: transformers' generate, and programs of transformers 4."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from chat_templates import CHATML, COMMAND_R, GLM, tokenizer, tokenizer_with_turn_marks
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stillhouse.distill.students.save import save_student
from stillhouse.models import ChatTemplate, load_weights

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
QUESTIONS = ["a", "the", "some", "out"]


def overfitted(tok, template):
    """A tiny model that has learned to answer each question with the question itself, twice."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tok), initializer_range=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for word in QUESTIONS:
        messages = [
            {"role": "user", "content": word},
            {"role": "assistant", "content": f"{word} {word}"},
        ]
        ids, mask = template.encode(tok, messages)
        labels = [number if written else -100 for number, written in zip(ids, mask, strict=True)]
        rows.append((torch.tensor([ids]), torch.tensor([labels])))
    for _ in range(40):
        loss = sum(model(ids, labels=labels).loss for ids, labels in rows) / len(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return model.eval()


@pytest.mark.parametrize("source", [CHATML, GLM, COMMAND_R], ids=["chatml", "glm", "command r"])
def test_a_student_stops_in_plain_transformers(tmp_path, source):
    """The tokenizer's end token is another one, as in base models with a chat template."""
    tok, template = tokenizer_with_turn_marks(), ChatTemplate(source)
    save_student(overfitted(tok, template), tok, template, tmp_path / "student", dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    reader = AutoTokenizer.from_pretrained(tmp_path / "student")
    for word in QUESTIONS:
        prompt = reader.apply_chat_template(
            [{"role": "user", "content": word}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        answer = loaded.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
        text = reader.decode(answer, skip_special_tokens=True).replace("<think></think>", "").strip()
        assert text == f"{word} {word}"
        assert answer[-1].item() in template.end_token_ids(tok)
        assert len(answer) < 20


def test_generation_settings_that_contradict_each_other_are_saved(tmp_path):
    """Llama 2's have a temperature and no sampling, which transformers refuses to save once they changed."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tokenizer())))
    model.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    published = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "base/generation_config.json").write_text(json.dumps(published))
    base = load_weights(str(tmp_path / "base"))
    save_student(base.model, tokenizer(), ChatTemplate(CHATML), tmp_path / "student")
    assert base.model.generation_config.eos_token_id is None  # the model in memory is not changed
    saved = json.loads((tmp_path / "student/generation_config.json").read_text())
    assert {key: saved[key] for key in published} == published
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config.eos_token_id
    assert tokenizer().convert_ids_to_tokens(ends) == ["</s>", "<|im_end|>"]


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}
# architecture, rotations, and what transformers 4.57.6 needs to compute the same logits (tried there)
ROTATIONS = {
    "plain": ("llama", {"rope_type": "default", "rope_theta": 5000.0}, {"rope_theta": 5000.0}),
    "linear": (
        "qwen2",
        {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
        {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "partial": (
        "stablelm",
        {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        {"rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    ),
    "longrope": (
        "phi3",
        LONGROPE,
        {
            "rope_theta": 5000.0,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4
            },
        },
    ),
    "by layer": (
        "gemma3_text",
        GEMMA3,
        {
            "rope_theta": 5000.0,
            "rope_local_base_freq": 700.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROTATIONS)
def test_transformers_4_finds_the_rotations_and_5_reads_what_it_wrote(tmp_path, name):
    model_type, rotation, expected = ROTATIONS[name]
    settings = {"original_max_position_embeddings": 16} if model_type == "phi3" else {}
    config = AutoConfig.for_model(
        model_type,
        **SIZES | settings,
        vocab_size=300,
        max_position_embeddings=64,
        rope_parameters=copy.deepcopy(rotation),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    save_student(model, tokenizer(), ChatTemplate(CHATML), tmp_path / "student", dtype="float32")
    settings = json.loads((tmp_path / "student/config.json").read_text())
    assert {key: settings.get(key) for key in expected} == expected
    ids = torch.arange(40)[None]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_transformers_4_knows_the_tokenizers_class_and_its_special_tokens(tmp_path):
    tok = copy.deepcopy(tokenizer())
    tok.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tok)))
    save_student(model, tok, ChatTemplate(CHATML), tmp_path / "student")
    settings = json.loads((tmp_path / "student/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings  # a list there fails in transformers 4
    loaded = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert loaded.extra_special_tokens == tok.extra_special_tokens
    for text in ("the <|im_end|> out", "  Ümläute 漢字"):
        assert loaded(text).input_ids == tok(text).input_ids


TEXT = {**SIZES, "vocab_size": 300, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_VISION = {
    "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [],
}  # fmt: skip
WITH_VISION = {
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", TEXT | {"sliding_window": 8}, VISION),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5ForCausalLM",
        TEXT | LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
        QWEN_VISION,
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        "MistralForCausalLM",
        SIZES | {"vocab_size": 300, "model_type": "mistral"},
        VISION | {"model_type": "pixtral"},
    ),
}


@pytest.mark.parametrize("name", WITH_VISION)
def test_a_student_of_a_model_with_vision_is_a_plain_text_model(tmp_path, name):
    import transformers

    whole_class, text_class, text, vision = WITH_VISION[name]
    config = AutoConfig.for_model(name, text_config=text, vision_config=vision)
    torch.manual_seed(0)
    whole = getattr(transformers, whole_class)(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    tokenizer().save_pretrained(tmp_path / "whole")
    weights = load_weights(str(tmp_path / "whole"))
    ids = torch.arange(20)[None]
    assert torch.equal(weights.model(ids).logits, whole(ids).logits)
    assert weights.model.config.num_hidden_layers == 2

    save_student(weights.model, weights.tokenizer, weights.template, tmp_path / "student", dtype="float32")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert type(loaded).__name__ == text_class
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, whole(ids).logits)
    with safe_open(tmp_path / "student/model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names <= set(loaded.state_dict())  # those that a text model of the class has
    assert "model.layers.1.mlp.up_proj.weight" in names
