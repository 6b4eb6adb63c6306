"""Spans of one answer in two tokenisations, against boundaries computed in another way."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from two_tokenizers import TEXT, chatml_reader, tags_reader, thinking_reader

from stillhouse.distill.data.documents import Document, make_documents
from stillhouse.distill.data.token_alignment import AlignedDocuments, ChatTokenizer, align_documents
from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import ChatTemplate

TEACHER, TAGS, THINKING = chatml_reader(), tags_reader(), thinking_reader()


def row(answer: str, *, reasoning: str | None = None, before: list[dict] | None = None) -> dict:
    answer_message = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
    return {
        "id": answer[:8],
        "messages": [*(before or []), {"role": "user", "content": "Why?"}, answer_message],
    }


def aligned(rows, student: ChatTokenizer, *, teacher: ChatTokenizer = TEACHER, max_length=4096, by="spans"):
    documents = make_documents(
        rows, student.tokenizer, student.template, loss_on="assistant", max_length=max_length
    )
    return documents, align_documents(rows, documents, teacher=teacher, student=student, by=by)


def texts(
    documents: list[Document],
    alignment: AlignedDocuments,
    student: ChatTokenizer,
    *,
    teacher: ChatTokenizer = TEACHER,
):
    """Every span's bytes on both sides, read from the tokens that its rows predict."""
    both = []
    for document, read, spans in zip(documents, alignment.documents, alignment.spans_S4, strict=True):
        for t, many, s, few in spans:
            ours = b"".join(teacher.token_bytes[n] for n in read.labels[t : t + many])
            theirs = b"".join(student.token_bytes[n] for n in document.labels[s : s + few])
            both.append((ours, theirs))
    return both


def ends_of(reader: ChatTokenizer, answer: str) -> set[int]:
    """Byte offsets at which a token of ``answer`` ends, when it is encoded alone."""
    ids = reader.tokenizer.backend_tokenizer.encode(answer, add_special_tokens=False).ids
    return {sum(len(reader.token_bytes[n]) for n in ids[: k + 1]) for k in range(len(ids))}


def test_one_tokenizer_gives_a_span_for_every_token():
    documents, alignment = aligned([row(TEXT), row("Because.")], TEACHER)
    for document, read, spans in zip(documents, alignment.documents, alignment.spans_S4, strict=True):
        rows = np.arange(document.counted)
        np.testing.assert_array_equal(spans, np.stack([rows, rows * 0 + 1, rows, rows * 0 + 1], axis=1))
        np.testing.assert_array_equal(read.labels, document.labels)
    assert alignment.facts["aligned_share"] == 1


@pytest.mark.parametrize("student", [TAGS, THINKING], ids=["tags", "thinking"])
@settings(max_examples=60, deadline=None)
@given(answer=st.text(st.sampled_from("the still 🙂é你\n1,—z"), min_size=1, max_size=40))
def test_spans_are_the_smallest_stretches_that_end_on_both_sides(student, answer):
    answer = "x" + answer + "x"  # no blank space around it, which a template may take away
    documents, alignment = aligned([row(answer)], student)
    *pairs, end = texts(documents, alignment, student)
    assert all(ours == theirs for ours, theirs in pairs)
    assert b"".join(ours for ours, _ in pairs) == answer.encode()
    stops = np.cumsum([len(ours) for ours, _ in pairs]).tolist()
    assert stops == sorted(ends_of(TEACHER, answer) & ends_of(student, answer))
    assert end[0] == b"<|im_end|>"
    assert end[1] in (b"</s>", b"<|stop|>")


def test_characters_cut_into_several_tokens_lie_in_one_span():
    bare = chatml_reader(258)  # bytes only
    documents, alignment = aligned([row("a🙂é")], bare, teacher=TEACHER)
    joined = [ours for ours, _ in texts(documents, alignment, bare)]
    assert joined[0] == b"a"
    assert b"".join(joined) == "a🙂é<|im_end|>".encode()
    assert alignment.facts["student_tokens_per_span"] >= alignment.facts["teacher_tokens_per_span"]


def test_blank_space_that_one_template_takes_away_is_left_out():
    documents, alignment = aligned([row("  the still \n")], TAGS)
    spans = texts(documents, alignment, TAGS)
    # The teacher's first token is " the", and the student's is "the".
    assert spans == [(b" still", b" still"), (b"<|im_end|>", b"</s>")]


def test_thoughts_are_aligned_and_headings_are_not():
    documents, alignment = aligned([row("a spirit", reasoning="what matters")], THINKING)
    spans = texts(documents, alignment, THINKING)
    assert all(ours == theirs for ours, theirs in spans[:-1])
    together = b"".join(ours for ours, _ in spans[:-1])
    assert b"what matters" in together
    assert b"a spirit" in together
    _, plain = aligned([row("a spirit")], THINKING)
    documents, _ = aligned([row("a spirit")], THINKING)
    spans = texts(documents, plain, THINKING)
    assert b"".join(ours for ours, _ in spans[:-1]) == b"a spirit"
    assert plain.facts["aligned_share"] < 1


def test_every_turn_is_aligned_with_its_own():
    before = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "the first"}]
    documents, alignment = aligned([row("the second", before=before)], TAGS)
    spans = [ours for ours, _ in texts(documents, alignment, TAGS)]
    assert b"".join(spans) == b"the first<|im_end|>the second<|im_end|>"


def test_what_only_the_teacher_is_shown_is_passed_over():
    def shown(messages):
        example = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "the still, too"}]
        return [{"role": "system", "content": "Be brief."}, *example, *messages]

    rows = [row("the still")]
    documents = make_documents(rows, TAGS.tokenizer, TAGS.template, loss_on="assistant", max_length=4096)
    alignment = align_documents(rows, documents, teacher=TEACHER, student=TAGS, teacher_view=shown)
    assert b"".join(ours for ours, _ in texts(documents, alignment, TAGS)) == b"the still<|im_end|>"
    assert (
        len(alignment.documents[0]) == len(TEACHER.encode(shown(rows[0]["messages"]))[0]) - 1
    )  # a line break


def test_what_was_cut_off_is_not_learned():
    rows = [row(TEXT)]
    whole, _ = aligned(rows, TAGS)
    documents, alignment = aligned(rows, TAGS, max_length=len(whole[0]) // 2)
    spans = alignment.spans_S4[0]
    assert spans[-1, 2] + spans[-1, 3] <= documents[0].counted
    assert texts(documents, alignment, TAGS)[-1][0] != b"<|im_end|>"
    assert len(alignment.documents[0]) < len(TEACHER.encode(rows[0]["messages"])[0])


def test_dropped_documents_are_passed_over():
    rows = [row("x" * 50), row("the still"), row("is")]
    documents = make_documents(rows, TAGS.tokenizer, TAGS.template, loss_on="assistant", max_length=4096)
    alignment = align_documents(rows, documents[1:], teacher=TEACHER, student=TAGS)
    assert [read.id for read in alignment.documents] == ["the stil", "is"]


def test_by_tokens_the_nth_stands_for_the_nth():
    documents, alignment = aligned([row("the thing that matters")], TAGS, by="tokens")
    shorter = min(documents[0].counted, alignment.spans_S4[0].shape[0])
    rows = np.arange(shorter)
    np.testing.assert_array_equal(
        alignment.spans_S4[0], np.stack([rows, rows * 0 + 1, rows, rows * 0 + 1], 1)
    )


def test_the_tokens_that_end_an_answer_are_known():
    assert [TEACHER.token_bytes[TEACHER.end_id()], TAGS.token_bytes[TAGS.end_id()]] == [
        b"<|im_end|>",
        b"</s>",
    ]


def test_readings_without_a_common_word_are_refused():
    """The student's template writes in capitals, and ends an answer with nothing."""
    shouting = ChatTemplate(
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] | upper }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(TokenizerMismatchError, match="no text of the assistant"):
        aligned([row("the still")], ChatTokenizer(TEACHER.tokenizer, shouting))
