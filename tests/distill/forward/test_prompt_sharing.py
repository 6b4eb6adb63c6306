"""A prompt that is read once must give what it gives when every answer reads it again."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tiny_training import (
    ARCHITECTURES,
    VOCABULARY,
    documents_of,
    gradients_of,
    llama,
    loss_in_one_pass,
    naive_loss_sum,
)

from stillhouse.distill.data.batch_schedule import micro_batches
from stillhouse.distill.data.documents import Document
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
from stillhouse.distill.forward.prompt_sharing import MIN_SHARED_PROMPT, prompt_sharing_batches

CPU = torch.device("cpu")


def answers_to(prompts: list[int], answers: list[list[int]], *, seed: int = 0) -> list[Document]:
    """For each prompt of that many random tokens, documents with answers of those lengths."""
    generator = np.random.default_rng(seed)
    documents = []
    for number, (length, answer_lengths) in enumerate(zip(prompts, answers, strict=True)):
        prompt = generator.integers(0, VOCABULARY, length, dtype=np.int32)
        for answer in answer_lengths:
            ids = np.concatenate([prompt, generator.integers(0, VOCABULARY, answer, dtype=np.int32)])
            documents.append(Document(f"{number}", ids, np.arange(len(ids)) >= length))
    return documents


MIXED = [
    *answers_to([MIN_SHARED_PROMPT, MIN_SHARED_PROMPT + 5, 3], [[4, 7, 1], [5, 5], [6, 2]]),
    *documents_of((40, 9)),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_prompts_give_the_loss_and_gradient_of_the_separate_documents(name):
    model = ARCHITECTURES[name]()
    expected = naive_loss_sum(model, MIXED)
    expected.backward()
    expected_gradients = gradients_of(model)
    model.zero_grad()

    layout = choose_layout(model, torch.float32)
    loss = loss_in_one_pass(model, MIXED, layout)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=1e-4, atol=1e-4)


def test_a_prompt_stands_in_the_row_once():
    documents = answers_to([MIN_SHARED_PROMPT], [[4, 7, 1]])
    lengths = collate(documents, NAME, CPU).inputs["segment_lengths"]
    assert lengths[:-1] == [MIN_SHARED_PROMPT, 4, 7, 1]
    short = answers_to([MIN_SHARED_PROMPT - 1], [[4, 7, 1]])
    assert collate(short, NAME, CPU).inputs["segment_lengths"][:-1] == [len(document) for document in short]


def test_an_answer_does_not_notice_the_others():
    model = llama()
    first, second = (answers_to([MIN_SHARED_PROMPT], [[5, 5]], seed=seed) for seed in (0, 1))
    changed = Document(
        "", np.concatenate([first[0].ids[:MIN_SHARED_PROMPT], second[0].ids[-5:]]), first[0].loss
    )
    with torch.no_grad(), use_attention(model, NAME):
        one = hidden_states(model.get_decoder(), collate([first[0], first[1]], NAME, CPU))
        other = hidden_states(model.get_decoder(), collate([changed, first[1]], NAME, CPU))
    assert torch.equal(one[5:], other[5:])
    assert not torch.equal(one[:5], other[:5])


def test_a_teacher_gives_the_same_hidden_states_in_the_callers_order():
    documents = answers_to([MIN_SHARED_PROMPT, MIN_SHARED_PROMPT], [[4, 7], [3, 9]])
    mixed = [documents[i] for i in (0, 2, 1, 3)]
    model = llama()
    for document, hidden_ND in zip(mixed, ForwardPass(model, mixed, "float32").hidden(range(4)), strict=True):
        with torch.no_grad():
            alone = hidden_states(model.get_decoder(), collate([document], PADDED, CPU))
        torch.testing.assert_close(hidden_ND, alone, rtol=1e-4, atol=1e-5)


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=1, max_size=6)),
        min_size=1,
        max_size=6,
    ),
    st.integers(20, 120),
    st.randoms(use_true_random=False),
)
def test_passes_keep_to_their_budget_and_lose_nothing(families, micro_tokens, random):
    documents = answers_to([prompt for prompt, _ in families], [answers for _, answers in families])
    random.shuffle(documents)
    passes = prompt_sharing_batches(range(len(documents)), documents, micro_tokens)
    assert sorted(i for batch in passes for i in batch) == list(range(len(documents)))
    for batch in passes:
        members = [documents[i] for i in batch]
        inputs = collate(members, NAME, CPU).inputs
        filler = -_distinct_tokens(members) % ROW_MULTIPLE
        assert inputs["input_ids"].shape[1] - filler == _distinct_tokens(members)
        assert len(batch) == 1 or _distinct_tokens(members) <= micro_tokens


def _distinct_tokens(documents: list[Document]) -> int:
    """Tokens of all answers, and of each long prompt once."""
    answers = sum(document.counted for document in documents)
    prompts = [document.ids[: len(document) - document.counted].tobytes() for document in documents]
    long = {prompt for prompt in prompts if len(prompt) >= 4 * MIN_SHARED_PROMPT}
    short = [prompt for prompt in prompts if len(prompt) < 4 * MIN_SHARED_PROMPT]
    return answers + sum(len(prompt) // 4 for prompt in [*long, *short])


def test_without_prompts_to_share_nothing_changes():
    documents = documents_of((9, 30, 12, 45, 3))
    lengths = [len(document) for document in documents]
    expected = micro_batches(range(5), lengths, 50, padded=False)
    assert prompt_sharing_batches(range(5), documents, 50) == expected
