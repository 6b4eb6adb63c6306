"""What a teacher is shown before a conversation: read from files, put in its place, kept from the student."""

from __future__ import annotations

import json

import pytest
from corpus_helpers import FakeTeacher, make_prompt, run_collect

from stillhouse.corpus import Context, Corpus, load_context
from stillhouse.errors import CorpusError, RecipeError
from stillhouse.recipe import Teacher
from stillhouse.recipe.load import parse_recipe

ASKED = [{"role": "user", "content": "Now?"}]
EXAMPLE = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"})
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_it_stands_before_the_conversation_whose_own_system_prompt_goes_first():
    context = Context("Be brief.", EXAMPLE)
    own = {"role": "system", "content": "Sing."}
    assert context.for_teacher(ASKED) == [SYSTEM, *EXAMPLE, *ASKED]
    assert context.for_teacher([own, *ASKED]) == [own, *EXAMPLE, *ASKED]
    assert Context().for_teacher(ASKED) == ASKED


@pytest.mark.parametrize(("private", "seen"), [(False, [SYSTEM, *EXAMPLE, *ASKED]), (True, ASKED)])
def test_a_private_context_is_the_teachers_alone(private, seen):
    context = Context("Be brief.", EXAMPLE, private)
    assert context.for_student(ASKED) == seen
    assert context.for_teacher(ASKED) == [SYSTEM, *EXAMPLE, *ASKED]
    assert Context.from_json(json.loads(json.dumps(context.as_json()))) == context


def test_it_is_read_from_files(tmp_path):
    (tmp_path / "long.txt").write_text("\ufeffBe\nbrief.\n")
    examples = write(
        tmp_path / "e.jsonl", {"prompt": "1+1?", "completion": "2"}, {"messages": [*EXAMPLE] * 2}
    )
    found = load_context(
        Teacher(model="m", system=f"file:{tmp_path}/long.txt", examples=examples, context="private")
    )
    assert found == Context("Be\nbrief.", EXAMPLE * 3, private=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "1+1?"}, "ends with an answer"),
        ({"messages": [SYSTEM, *EXAMPLE]}, "no system prompt"),
    ],
)
def test_an_example_without_an_answer_or_with_a_system_prompt_is_refused(tmp_path, line, said):
    with pytest.raises(CorpusError, match=said):
        load_context(Teacher(model="m", examples=write(tmp_path / "e.jsonl", line)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CorpusError, match="there is no file"):
        load_context(Teacher(model="m", system=f"file:{tmp_path}/none.txt"))


def test_nothing_to_keep_private_is_refused():
    text = "name: n\nteacher: {model: embedded:smollm2, context: private}\nprompts: {source: p}\n"
    with pytest.raises(RecipeError, match="`private` needs `system` or `examples`"):
        parse_recipe(text + "student: {model: embedded:smollm2}\n")


def rows_under(place, **teacher) -> tuple[list[dict], list]:
    asked = []
    model = FakeTeacher(lambda request: asked.append(request.messages) or "So.")
    corpus = Corpus(place)
    run_collect(model, [make_prompt("Now?")], corpus, teacher=Teacher(model="fake:teacher", **teacher))
    return list(corpus.rows()), asked


def roles(messages) -> list[str]:
    return [message["role"] for message in messages]


def test_the_teacher_is_asked_under_it_and_the_corpus_keeps_what_the_student_reads(tmp_path):
    examples = write(tmp_path / "e.jsonl", {"messages": EXAMPLE})
    shown = {"system": "Be brief.", "examples": examples}
    turns = ["system", "user", "assistant", "user"]
    found = {}
    for context, kept in {"shared": [*turns, "assistant"], "private": ["user", "assistant"]}.items():
        rows, asked = rows_under(tmp_path / context, **shown, context=context)
        assert [roles(messages) for messages in asked] == [turns]
        assert [roles(row["messages"]) for row in rows] == [kept]
        found[context] = rows[0]["id"]
    assert found["shared"] != found["private"]


def test_without_files_ids_are_what_they_were(tmp_path):
    """Answers collected by an earlier version stay answers: the id of one is written down here."""
    rows, _ = rows_under(tmp_path, system="Be brief.")
    assert rows[0]["id"] == "6b4bd7add702431ca638455cabe35522"
