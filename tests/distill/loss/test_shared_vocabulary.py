"""The shared token of each token of two vocabularies."""

import torch
from two_tokenizers import TEXT, chatml_reader, make_tokenizer, tags_reader

from stillhouse.distill.data.token_alignment import ChatTokenizer
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary, join_vocabularies
from stillhouse.models import token_bytes

TEACHER, STUDENT = chatml_reader(), tags_reader()


def counted_for(vocabulary: SharedVocabulary, side: ChatTokenizer, of: str) -> dict[bytes, int]:
    classes = (vocabulary.teacher_V if of == "teacher" else vocabulary.student_V).tolist()
    return {b: n for b, n in zip(side.token_bytes, classes, strict=True) if b is not None}


def test_the_bytes_of_tokens_joined_are_the_text():
    for text in (TEXT, "tab\tnew\nline  \x00\x7f\xa0\xad", "".join(map(chr, range(0x100, 0x180)))):
        ids = TEACHER.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(TEACHER.token_bytes[n] for n in ids) == text.encode()


def test_the_bytes_of_a_sentencepiece_tokenizer():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁the", "th", "e"]
    backend = Tokenizer(
        models.BPE({p: n for n, p in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_of_tokens = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert bytes_of_tokens[1:257] == [bytes([n]) for n in range(256)]
    assert bytes_of_tokens[257:] == [b" ", b" the", b"th", b"e"]


def test_one_vocabulary_counts_each_token_for_itself():
    vocabulary = join_vocabularies(TEACHER.tokenizer, TEACHER.tokenizer)
    assert vocabulary.size == len(TEACHER.token_bytes)
    assert torch.equal(vocabulary.teacher_V, torch.arange(vocabulary.size))
    assert torch.equal(vocabulary.student_V, torch.arange(vocabulary.size))


def test_every_token_counts_for_the_longest_shared_token_that_it_begins_with():
    vocabulary = join_vocabularies(TEACHER.tokenizer, STUDENT.tokenizer)
    ours, theirs = counted_for(vocabulary, TEACHER, "teacher"), counted_for(vocabulary, STUDENT, "student")
    both = set(ours) & set(theirs)
    assert len(both) == vocabulary.size < min(len(ours), len(theirs))
    name = {ours[b]: b for b in both}
    assert sorted(name) == list(range(vocabulary.size))
    for side in (ours, theirs):
        for b, number in side.items():
            assert name[number] == max((c for c in both if b.startswith(c)), key=len)


def test_the_tokens_that_end_an_answer_are_one():
    ends = TEACHER.end_id(), STUDENT.end_id()
    vocabulary = join_vocabularies(TEACHER.tokenizer, STUDENT.tokenizer, ends)
    assert vocabulary.teacher_V[ends[0]] == vocabulary.student_V[ends[1]]
    less_than = TEACHER.token_bytes.index(b"<")
    assert vocabulary.teacher_V[ends[0]] != vocabulary.teacher_V[less_than]
    apart = join_vocabularies(TEACHER.tokenizer, STUDENT.tokenizer)
    assert apart.teacher_V[ends[0]] == apart.teacher_V[less_than]


def test_half_characters_count_for_a_shared_beginning():
    """A token of the first three bytes of an emoji is no text that could be encoded."""
    teacher = make_tokenizer(258 + 3, ["<|im_end|>"], text="🙂🙃🙄")
    half = next(b for b in token_bytes(teacher) if b and len(b) == 3 and "🙂".encode().startswith(b))
    student = make_tokenizer(257, ["<|im_end|>"])
    vocabulary = join_vocabularies(teacher, student)
    assert (
        vocabulary.teacher_V[token_bytes(teacher).index(half)]
        == vocabulary.student_V[token_bytes(student).index(half[:1])]
    )


def test_rows_of_a_padded_embedding_count_for_none():
    vocabulary = SharedVocabulary(torch.tensor([0, 1]), torch.tensor([1, 0, 1]), 2)
    assert vocabulary.resized(vocabulary.teacher_V, 4).tolist() == [0, 1, 2, 2]
    assert vocabulary.resized(vocabulary.student_V, 2).tolist() == [1, 0]
