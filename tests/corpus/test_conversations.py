"""`collect` and `tokenize`: conversations from Python, and answers as a list."""

import asyncio
import shutil

import numpy as np
import pytest

import stillhouse
from stillhouse.corpus.conversations import run_coroutine
from stillhouse.errors import CorpusError, EmptyCorpusError, TermsError, UsageError

HI = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "hello"}


@pytest.fixture(scope="module")
def teacher(tiny_teacher, tmp_path_factory):
    """The tiny teacher with a licence."""
    directory = tmp_path_factory.mktemp("licensed") / "teacher"
    shutil.copytree(tiny_teacher, directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return stillhouse.load(directory)


def answers(rows) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def test_answers_come_in_the_order_of_the_prompts(teacher):
    prompts = ["one?", [{"role": "system", "content": "be kind"}, HI], {"prompt": "three?", "level": 3}]
    rows = stillhouse.collect(teacher, prompts, samples=2, max_tokens=6, seed=1)
    assert [row["messages"][-2]["content"] for row in rows] == [
        "one?",
        "one?",
        "hi",
        "hi",
        "three?",
        "three?",
    ]
    assert [row["sample"] for row in rows] == [0, 1] * 3
    assert rows[2]["messages"][0] == {"role": "system", "content": "be kind"}
    assert rows[4]["tags"] == {"level": 3}
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    assert all(row["terms"] == "apache-2.0" for row in rows)
    # An answer depends on its own prompt and the seed, not on its neighbours.
    assert answers(stillhouse.collect(teacher, ["three?"], max_tokens=6, seed=1)) == answers(rows)[4:5]
    assert answers(stillhouse.collect(teacher, ["three?"], max_tokens=6, seed=2)) != answers(rows)[4:5]


def test_a_reference_and_its_weights_give_the_same_answers(teacher):
    greedy = {"temperature": 0.0, "max_tokens": 6}
    loaded = stillhouse.load(teacher.reference, dtype="bfloat16")
    by_reference = stillhouse.collect(teacher.reference, ["one?"], **greedy)
    assert answers(by_reference) == answers(stillhouse.collect(loaded, ["one?"], **greedy))


def test_stored_answers_are_not_asked_again(teacher, tmp_path, monkeypatch):
    first = stillhouse.collect(teacher, ["one?", "two?"], directory=tmp_path, max_tokens=4)
    asked = []
    generate = "stillhouse.models.backends.pytorch.TorchModel._generate"
    monkeypatch.setattr(generate, lambda self, requests: asked.append(requests))
    assert stillhouse.collect(teacher, ["one?", "two?"], directory=tmp_path, max_tokens=4) == first
    assert asked == []


def test_finished_conversations_are_returned_as_they_are(teacher):
    rows = stillhouse.collect(teacher, [[HI, HELLO]])
    assert rows[0]["messages"] == [HI, HELLO]


def test_terms_are_checked(teacher, tiny_teacher):
    with pytest.raises(TermsError):
        stillhouse.collect(str(tiny_teacher), ["hi"])
    rows = stillhouse.collect(str(tiny_teacher), ["hi"], accept_terms="a test's own model", max_tokens=2)
    assert rows[0]["terms"] == "unknown"
    own = stillhouse.load(teacher.model, teacher.tokenizer)
    own.reference = "in memory"  # made by a program: whose terms would these be?
    assert stillhouse.collect(own, ["hi"], max_tokens=2)[0]["terms"] == "unknown"
    with pytest.raises(TermsError):
        stillhouse.collect("api:https://api.openai.com/v1#gpt-5", ["hi"], purpose="competing")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no conversation"),
        ([HI, HELLO], "conversation 0: this is a single message"),
        (["fine", 3], "conversation 1: a int"),
        ([[{"role": "robot", "content": "x"}]], "conversation 0: .*robot"),
        ([{"answer": "x"}], "conversation 0: no column holds"),
    ],
)
def test_malformed_conversations_are_named(teacher, prompts, message):
    with pytest.raises(CorpusError, match=message):
        stillhouse.collect(teacher, prompts)


def test_a_running_event_loop_is_no_obstacle(teacher):
    """A notebook's cells run inside of one."""

    async def cell():
        return stillhouse.collect(teacher, ["one?"], max_tokens=2)

    assert len(asyncio.run(cell())) == 1

    async def fails():
        raise UsageError("as it should")

    async def outer():
        run_coroutine(fails())

    with pytest.raises(UsageError, match="as it should"):
        asyncio.run(outer())


def test_tokenize_learns_the_answers_only(teacher):
    (document,) = stillhouse.tokenize([[HI, HELLO]], teacher)
    learned = teacher.tokenizer.decode(document.ids[document.loss])
    assert learned == "hello<|im_end|>"
    assert document.ids.dtype == np.int32 and document.loss.dtype == bool
    (everything,) = stillhouse.tokenize([[HI, HELLO]], teacher, loss_on="all")
    assert everything.loss.all()
    (record,) = stillhouse.tokenize([{"prompt": "hi", "completion": "hello"}], teacher)
    assert np.array_equal(record.ids, document.ids)
    with pytest.raises(EmptyCorpusError, match="no conversation has a token to learn"):
        stillhouse.tokenize([[HI]], teacher)
