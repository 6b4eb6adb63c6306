"""A packed pass must give what each document gives alone, for every architecture."""

import numpy as np
import pytest
import torch
import transformers
from tiny_training import (
    ARCHITECTURES,
    SIZES,
    VOCABULARY,
    documents_of,
    gradients_of,
    llama,
    loss_in_one_pass,
    naive_loss_sum,
)
from transformers import LlamaForCausalLM

from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward import packed_attention, packing
from stillhouse.distill.forward.forward_pass import ForwardPass
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


@pytest.mark.parametrize("kind", ["NemotronConfig", "StableLmConfig"])
def test_a_model_that_does_not_hand_the_segments_on_is_padded(kind):
    config = getattr(transformers, kind)(**SIZES)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    documents = documents_of(LENGTHS)
    assert choose_layout(model, torch.float32) == PADDED
    with torch.no_grad():
        ours, expected = loss_in_one_pass(model, documents, PADDED), naive_loss_sum(model, documents)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("layout", [NAME, PADDED])
def test_documents_on_both_sides_of_the_original_context_are_rotated_as_alone(layout):
    """LongRoPE rotates all tokens of a pass by its longest document."""
    rotation = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 12,
        "factor": 4.0,
    }
    model = llama(rope_parameters=rotation, max_position_embeddings=48)
    documents = documents_of((20, 9, 12, 13, 4, 33))
    # Two documents share a prompt, one answer within the context and one beyond it.
    prompt = documents[5].ids[:16]
    documents += [
        Document("", np.concatenate([prompt, ids]), np.arange(16 + len(ids)) >= 16)
        for ids in (documents[4].ids[:2], documents[0].ids[:6])
    ]
    forward = ForwardPass(model, documents, "float32")
    assert forward.switch == 12
    forward.layout = layout
    for number, hidden_ND in enumerate(forward.hidden(range(len(documents)))):
        with torch.no_grad():
            batch = collate([documents[number]], PADDED, CPU)
            alone_ND = hidden_states(model.get_decoder(), batch)
        torch.testing.assert_close(hidden_ND, alone_ND, rtol=1e-4, atol=1e-4)


def test_a_window_that_the_attention_does_not_hear_of_is_found_on_a_tiny_copy(monkeypatch):
    """The real window is longer than the trial's documents, the copy's is not."""
    config = transformers.MistralConfig(**SIZES, sliding_window=4096)
    model = transformers.MistralForCausalLM(config).eval()
    assert choose_layout(model, torch.float32) == NAME
    monkeypatch.setattr(packing, "_copies_that_pack", {})
    monkeypatch.setattr(packed_attention, "_mask", lambda *_: None)
    assert choose_layout(model, torch.float32) == PADDED


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
    # The filler is a document of its own, and reaches no further than the others.
    assert positions[9:] == [min(n, 3) for n in range(len(positions) - 9)]


def test_a_row_is_filled_up_and_nothing_is_learned_of_the_filler():
    for lengths in ((3, 2, 4), (100, 28), (100, 29)):
        documents = documents_of(lengths)
        batch = collate(documents, NAME, CPU)
        width = batch.inputs["input_ids"].shape[1]
        assert width == ROW_MULTIPLE * -(-sum(lengths) // ROW_MULTIPLE)
        assert sum(batch.inputs["segment_lengths"]) == width
        assert batch.predicting_N.max() < sum(lengths)
