"""A tokenizer with an added token that the model lacks is accepted; only text that uses it is refused."""

from __future__ import annotations

import asyncio
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.forward_pass import ForwardPass
from stillhouse.errors import ModelError
from stillhouse.models import Request, Sampling, TorchModel, load_weights

IMAGE = "<image_soft_token>"


@pytest.fixture
def weights(tiny_teacher, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
    # The template writes the token where a message says so, as those of models that read images do.
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message",
        "{% if 'picture' in messages[0]['content'] %}" + IMAGE + "{% endif %}{% for message",
        1,
    )
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = load_weights(str(tmp_path / "model"))
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size + 1
    return loaded


def test_a_prompt_with_the_token_is_refused_and_the_others_are_answered(weights):
    model = TorchModel(weights, seed=0)
    requests = [
        Request(str(number), [{"role": "user", "content": text}], Sampling(max_tokens=3))
        for number, text in enumerate(["Hi", f"Hi {IMAGE}", "a picture"])
    ]
    plain, spelled, used = asyncio.run(model.generate(requests))
    assert plain.completion_tokens and spelled.completion_tokens  # what a user spells is plain text
    assert isinstance(used, ModelError)
    assert "the prompt 2 has the token 320" in str(used)


def test_a_document_with_the_token_is_named(weights):
    ids = np.array([5, 6, 320, 7], dtype=np.int32)
    documents = [
        Document(name, ids[keep], np.ones(int(keep.sum()), bool))
        for name, keep in (("good", ids < 320), ("bad", ids < 999))
    ]
    ForwardPass(weights.model, documents[:1], "float32")
    with pytest.raises(
        ModelError, match="document bad has the token 320, and the model's embedding 320 rows"
    ):
        ForwardPass(weights.model, documents, "float32")


def test_ordinary_tokens_beyond_the_embedding_are_refused(tiny_teacher, tmp_path):
    import json

    shutil.copytree(tiny_teacher, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    tokenizer = json.loads((tmp_path / "model/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["zzz"] = config["vocab_size"]
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="beyond the 320 rows"):
        load_weights(str(tmp_path / "model"))
