"""`load`: references, and models that are in memory already."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stillhouse
from stillhouse.errors import ModelError, UsageError
from stillhouse.models import describe


@pytest.fixture(scope="module")
def own(tiny_teacher):
    return AutoModelForCausalLM.from_pretrained(tiny_teacher), AutoTokenizer.from_pretrained(tiny_teacher)


def test_a_model_in_memory_is_the_same_object(own, tiny_teacher):
    weights = stillhouse.load(*own)
    assert weights.model is own[0] and weights.tokenizer is own[1]
    loaded = stillhouse.load(tiny_teacher)
    assert weights.template.hash == loaded.template.hash
    assert weights.end_ids == loaded.end_ids
    with torch.no_grad():
        ids = torch.arange(6)[None]
        assert torch.equal(weights.model(ids).logits, loaded.model(ids).logits)


def test_fingerprints_in_memory_follow_the_weights(own):
    before = stillhouse.load(*own).fingerprint
    assert stillhouse.load(*own).fingerprint == before
    with torch.no_grad():
        own[0].lm_head.weight[0, 0] += 1
    assert stillhouse.load(*own).fingerprint != before


def test_dtype_and_run_directories(tiny_teacher, tmp_path):
    (tmp_path / "student").symlink_to(tiny_teacher)
    weights = stillhouse.load(tmp_path, dtype="bfloat16")
    assert weights.model.dtype == torch.bfloat16
    assert describe(str(tmp_path)).parameters == describe(str(tiny_teacher)).parameters


def test_a_saved_model_is_the_same_model(own, tmp_path):
    path = stillhouse.save(stillhouse.load(*own), tmp_path / "saved", dtype="float32")
    again = stillhouse.load(path)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, own[0](ids).logits)


def test_what_is_no_model_is_refused(own, tiny_teacher):
    with pytest.raises(UsageError, match="needs its tokenizer"):
        stillhouse.load(own[0])
    with pytest.raises(UsageError, match="brings its own tokenizer"):
        stillhouse.load(str(tiny_teacher), own[1])
    with pytest.raises(UsageError, match="a Linear is not a model"):
        stillhouse.load(torch.nn.Linear(1, 1), own[1])
    with pytest.raises(ModelError, match="not a fast tokenizer"):
        stillhouse.load(own[0], object())
