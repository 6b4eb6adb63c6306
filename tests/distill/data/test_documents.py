"""Exchanges as token ids: what is learned is what the assistant wrote, first token and end mark included."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stillhouse.distill.data.documents import Document, documents_hash, make_documents
from stillhouse.errors import ModelError
from stillhouse.models import ChatTemplate

CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and the two marks: every text can be worked out by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return made


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(CHATML, {"eos_token": "<|im_end|>"})


def exchange(number: int, *turns: str) -> dict:
    roles = ("user", "assistant")
    messages = [
        {"role": roles[i % 2], "content": turn, "reasoning_content": None} for i, turn in enumerate(turns)
    ]
    return {"id": f"row-{number}", "messages": messages}


def make(rows, tokenizer, template, *, loss_on="assistant", max_length=1000) -> list[Document]:
    return make_documents(rows, tokenizer, template, loss_on=loss_on, max_length=max_length)


def spelled(tokenizer, ids) -> str:
    backend = tokenizer.backend_tokenizer
    letters = {letter: byte for byte, letter in bytes_of_letters().items()}
    tokens = [backend.id_to_token(int(i)) for i in ids]
    return "".join(chr(letters[token]) if token in letters else token for token in tokens)


def bytes_of_letters() -> dict[int, str]:
    """Which letter stands for each printable byte of a byte-level vocabulary (newline and space move)."""
    return {byte: chr(byte) for byte in range(33, 127)} | {10: "Ċ", 32: "Ġ"}


def test_the_assistants_words_are_learned_from_the_first_to_the_end_mark(tokenizer, template):
    (document,) = make([exchange(0, "Hi?", "Yes.", "So?", "No.")], tokenizer, template)
    text = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    assert spelled(tokenizer, document.ids).startswith(text)
    assert spelled(tokenizer, document.ids[document.loss]) == "Yes.<|im_end|>No.<|im_end|>"
    assert document.id == "row-0"
    assert document.ids.dtype == np.int32
    assert document.loss.dtype == bool


def test_labels_stand_one_after_their_predicting_positions(tokenizer, template):
    (document,) = make([exchange(0, "Hi?", "Yes.")], tokenizer, template)
    assert spelled(tokenizer, document.labels) == "Yes.<|im_end|>"
    assert spelled(tokenizer, document.ids[document.predicting]) == "\nYes."
    assert document.counted == 5


def test_all_tokens_but_the_first_can_be_learned(tokenizer, template):
    (document,) = make([exchange(0, "Hi?", "Yes.")], tokenizer, template, loss_on="all")
    assert document.loss.all()
    assert document.labels.tolist() == document.ids[1:].tolist()


def test_a_long_document_is_cut_at_its_end(tokenizer, template, capsys):
    rows = [exchange(0, "Hi?", "Yes, certainly."), exchange(1, "Hi?", "No.")]
    whole = make(rows, tokenizer, template)
    cut = make(rows, tokenizer, template, max_length=len(whole[1]))
    assert len(cut[0]) == len(whole[1]) < len(whole[0])
    assert cut[0].ids.tolist() == whole[0].ids[: len(cut[0])].tolist()
    assert cut[0].loss.tolist() == whole[0].loss[: len(cut[0])].tolist()
    assert "1 of 2 documents are longer than" in capsys.readouterr().err


def test_a_document_without_a_token_to_learn_is_dropped_and_said(tokenizer, template, capsys):
    rows = [exchange(0, "Hi?", "Yes."), exchange(1, "A much longer question than that?", "No.")]
    kept = make(rows, tokenizer, template, max_length=40)
    assert [document.id for document in kept] == ["row-0"]
    assert "1 of 2 documents have no token to learn" in capsys.readouterr().err


def test_rows_may_be_a_stream(tokenizer, template):
    stream = (exchange(i, "Hi?", "Yes.") for i in range(3))
    assert [document.id for document in make(stream, tokenizer, template)] == ["row-0", "row-1", "row-2"]


def test_the_hash_changes_with_every_part():
    ids, loss = np.array([1, 2, 3], dtype=np.int32), np.array([False, True, True])
    base = [Document("a", ids, loss), Document("b", ids, loss)]
    others = [
        [Document("c", ids, loss), base[1]],
        [Document("a", ids + 1, loss), base[1]],
        [Document("a", ids, ~loss), base[1]],
        [base[1], base[0]],
        base[:1],
    ]
    assert documents_hash(base) == documents_hash([Document("a", ids.copy(), loss.copy()), base[1]])
    assert len({documents_hash(documents) for documents in [base, *others]}) == 6


def test_an_exchange_that_the_template_refuses_is_left_out_and_named(tokenizer, capsys):
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    strict = ChatTemplate(CHATML + refusal)
    good, bad = exchange(1, "q", "a"), exchange(2, "q", "a")
    bad["messages"].insert(0, {"role": "system", "content": "s"})
    (document,) = make([bad, good], tokenizer, strict)
    assert document.id == "row-1"
    assert "1 of 2 conversations cannot be rendered" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match=r"cannot render any of 1 conversations; first row-2: .*no system"):
        make([bad], tokenizer, strict)


def test_a_turn_of_weight_0_has_no_loss(tokenizer, template):
    row = exchange(1, "2+7?", "Nonsense.", "No.", "9.")
    row["messages"][1]["weight"] = 0
    row["messages"][3]["weight"] = None
    (document,) = make([row], tokenizer, template)
    assert spelled(tokenizer, document.labels) == "9.<|im_end|>"
    (document,) = make([row], tokenizer, template, loss_on="all")
    whole = spelled(tokenizer, document.ids)
    assert (
        spelled(tokenizer, document.labels) == whole.replace("Nonsense.<|im_end|>", "")[len("<|im_start|>") :]
    )
