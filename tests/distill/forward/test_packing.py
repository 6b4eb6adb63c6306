"""A packed pass must give what each document gives alone, for every architecture."""

import numpy as np
import pytest
import torch
from tiny_training import (
    ARCHITECTURES,
    VOCABULARY,
    documents_of,
    gradients_of,
    llama,
    loss_in_one_pass,
    naive_loss_sum,
)
from transformers import LlamaForCausalLM

from stillhouse.distill.forward.packed_attention import NAME
from stillhouse.distill.forward.packing import (
    PADDED,
    ROW_MULTIPLE,
    choose_layout,
    collate,
    hidden_states,
    use_attention,
)

CPU = torch.device("cpu")
LENGTHS = (9, 2, 13, 5, 5)
PACKS = {"llama", "qwen2", "qwen2_window", "qwen3", "gemma3"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_pass_gives_the_loss_and_gradient_of_the_separate_documents(name):
    model = ARCHITECTURES[name]()
    documents = documents_of(LENGTHS)
    expected = naive_loss_sum(model, documents)
    expected.backward()
    expected_gradients = gradients_of(model)
    model.zero_grad()

    loss = loss_in_one_pass(model, documents, choose_layout(model, torch.float32))
    loss.backward()

    counted = sum(document.counted for document in documents)
    assert loss.item() / counted == pytest.approx(expected.item() / counted, abs=1e-5)
    for parameter, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_that_can_be_packed_are_and_others_are_padded(name, dtype):
    layout = choose_layout(ARCHITECTURES[name]().to(dtype), dtype)
    assert layout == (NAME if name in PACKS else PADDED)


@pytest.mark.parametrize("name", sorted(PACKS))
def test_a_document_does_not_notice_its_neighbours(name):
    model = ARCHITECTURES[name]()
    first, second = documents_of((8, 8)), documents_of((8, 8), seed=1)
    with torch.no_grad(), use_attention(model, NAME):
        one = hidden_states(model.get_decoder(), collate([first[0], first[1]], NAME, CPU))
        other = hidden_states(model.get_decoder(), collate([second[0], first[1]], NAME, CPU))
    count = first[1].counted
    assert torch.equal(one[-count:], other[-count:])
    assert not torch.equal(one[:count], other[:count])


def test_a_model_outside_the_attention_interface_is_padded(monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "_can_set_attn_implementation", classmethod(lambda cls: False))
    assert choose_layout(llama(), torch.float32) == PADDED


def test_a_recurrent_model_is_padded_and_loses_nothing():
    """A layer that adds up all it has seen would carry one document into the next of a packed row."""
    model = llama()
    model.model.layers[0].register_forward_hook(lambda *call: call[-1] + 0.1 * call[-1].cumsum(dim=1))
    documents = documents_of(LENGTHS)
    assert choose_layout(model, torch.float32) == PADDED
    with torch.no_grad():
        ours, expected = loss_in_one_pass(model, documents, PADDED), naive_loss_sum(model, documents)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_choosing_and_using_a_layout_leave_the_model_as_it_was():
    model = llama()
    before = model.config.to_dict(), model.config._attn_implementation
    with use_attention(model, choose_layout(model, torch.float32)):
        assert model.config._attn_implementation == NAME
    assert (model.config.to_dict(), model.config._attn_implementation) == before
    assert not model.training


@pytest.mark.parametrize("layout", [NAME, PADDED])
def test_labels_are_the_tokens_after_the_predicting_positions(layout):
    documents = documents_of((6, 3, 7))
    batch = collate(documents, layout, CPU)
    row = batch.inputs["input_ids"].flatten()
    expected = np.concatenate([d.ids[t : t + 1] for d in documents for t in range(1, len(d)) if d.loss[t]])
    assert batch.labels_N.tolist() == expected.tolist()
    assert row[batch.predicting_N + 1].tolist() == expected.tolist()
    assert int(row.max()) < VOCABULARY


def test_positions_begin_anew_with_each_document():
    batch = collate(documents_of((3, 2, 4)), NAME, CPU)
    positions = batch.inputs["position_ids"].tolist()[0]
    assert positions[:9] == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert positions[9:] == list(range(len(positions) - 9))  # the filler, a document of its own


def test_a_row_is_filled_up_and_nothing_is_learned_of_the_filler():
    for lengths in ((3, 2, 4), (100, 28), (100, 29)):
        documents = documents_of(lengths)
        batch = collate(documents, NAME, CPU)
        width = batch.inputs["input_ids"].shape[1]
        assert width == ROW_MULTIPLE * -(-sum(lengths) // ROW_MULTIPLE)
        assert sum(batch.inputs["segment_lengths"]) == width
        assert batch.predicting_N.max() < sum(lengths)
