"""Every kind of verifier, and what becomes of one that crashes, hangs or says nonsense."""

from __future__ import annotations

import json
import threading

import pytest

from stillhouse.errors import MissingExtraError, RecipeError
from stillhouse.recipe import Verifier
from stillhouse.verifiers import Answer, check_verifiers, open_verifiers
from stillhouse.verifiers.extract import extract, number


def scored(verifier: Verifier, *answers: Answer):
    with open_verifiers([verifier]) as verifiers:
        return verifiers.score(answers), verifiers.failures[verifier.kind]


@pytest.mark.parametrize(
    ("how", "text", "found"),
    [
        ("answer_tag", "<answer>1</answer> no, <answer> 2\n</answer>", "2"),
        ("answer_tag", "2", None),
        ("boxed", r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1", None),
        ("last_line", "a\n b \n\n", "b"),
        ("last_number", "from 3 to 1,024.", "1,024"),
        ("last_number", "none", None),
        ("last_number", "Pages 12-15", "15"),
        ("last_number", "x=-5", "-5"),
        ("last_number", "(-5)", "-5"),
        ("last_number", "5 − −3", "−3"),
        ("last_number", "10.5-2", "2"),
        ("gsm8k", "2+40=42\n#### 42\nThe reasoning in steps 1 to 3 confirms it.", "42"),
        ("gsm8k", "#### 1\nno:\n####  1,024 apples.", "1,024 apples"),
        ("gsm8k", "#### \n7", None),
        ("gsm8k", "42", None),
        ("whole", "  ", None),
    ],
)
def test_what_counts_as_the_answer(how, text, found):
    assert extract(text, how) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,000", 1000),
        ("−2.5e3", -2500),
        ("3/4", 0.75),
        ("50%", 0.5),
        ("$12", 12),
        ("1/0", None),
        ("x", None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


def test_exact_and_numeric():
    tags = {"answer": "12.0"}
    (right, wrong), failures = scored(
        Verifier(kind="exact"), Answer(" 12.0 ", tags=tags), Answer("12", tags=tags)
    )
    assert (right.value, wrong.value, failures) == (1, 0, 0)
    near = Verifier(kind="numeric", extract="last_number", tolerance=0.01)
    values, failures = scored(
        near, *(Answer(f"It is {x}", tags=tags) for x in ("12.1", "12.2", "twelve", "1e999"))
    )
    assert [score.value for score in values] == [1, 0, 0, 0]
    assert failures == 0


GOLD = "She has 2+40=<<2+40=42>>42 apples.\n#### 42"


@pytest.mark.parametrize("kind", ["exact", "numeric", "math"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+40=42\n#### 42\nThe reasoning in steps 1 to 3 confirms it.", 1),
        ("2+40=43\n#### 43", 0),
        ("It is 42.", 0),
    ],
)
def test_gsm8k(kind, text, value):
    (score,), failures = scored(Verifier(kind=kind, extract="gsm8k"), Answer(text, tags={"answer": GOLD}))
    assert (score.value, failures) == (value, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42 apples", 1),
        ("42.", 1),
        ("$42 in all", 1),
        ("42 of 43", 0),
        ("it is 42", 0),
        ("42nd", 0),
        ("4200%", 1),
    ],
)
def test_words_may_follow_a_number(text, value):
    (score,), failures = scored(Verifier(kind="numeric"), Answer(text, tags={"answer": GOLD}))
    assert (score.value, failures) == (value, 0)


def test_a_prompt_without_a_reference_is_a_failure_of_the_verifier():
    (score,), failures = scored(Verifier(kind="exact"), Answer("12"))
    assert (score.value, score.failed, failures) == (0, True, 1)
    assert "'answer'" in score.detail


@pytest.mark.parametrize(
    ("text", "reasoning", "value"),
    [
        ("<think>hm</think> 4", None, 1),
        ("4", "hm", 1),
        ("4", None, 0),
        ("<think>hm</think>", None, 0),
        ("<think> </think> 4", None, 0),
        ("<think>a</think> b </think> c", None, 0),
        ("", "hm", 0),
        ("<think>again</think> 4", "hm", 0),
        ("<think>never closed", None, 0),
    ],
)
def test_form(text, reasoning, value):
    scores, _ = scored(Verifier(kind="format"), Answer(text, reasoning))
    assert scores[0].value == value


def test_mathematics_off_the_main_thread():
    tags = {"answer": r"\frac{1}{2}"}
    verifier = Verifier(kind="math", extract="boxed", timeout_s=20)
    found = []

    def work():
        texts = (r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{2}", "no box")
        found.extend(scored(verifier, *(Answer(text, tags=tags) for text in texts)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [score.value for score in found[0]] == [1, 1, 0, 0]
    assert found[1] == 0


def test_reasoning_gym_scores_with_the_datasets_own_scorer():
    entry = {"question": "60 + 93 =", "answer": "153", "metadata": {}}
    tags = {"answer": "153", "dataset": "chain_sum", "entry": json.dumps(entry)}
    verifier = Verifier(kind="reasoning_gym", extract="last_number")
    scores, failures = scored(
        verifier, Answer("It is 153.0", tags=tags), Answer("154", tags=tags), Answer("1")
    )
    assert scores[0].value == 1
    assert scores[1].value < 1
    assert scores[2].failed
    assert failures == 1


def test_a_function_sees_text_and_thoughts_apart_and_may_print():
    answer = Answer("yes, 12", "hm", {"answer": "12"})
    for name in ("contains_reference", "has_thoughts"):
        verifier = Verifier(kind="function", function=f"verifiers.verifier_hooks:{name}")
        assert scored(verifier, answer)[0][0].value == 1


def test_a_verifier_that_misbehaves_scores_nothing_and_goes_on():
    verifier = Verifier(kind="function", function="verifiers.verifier_hooks:misbehave", timeout_s=1)
    texts = ("good", "raise", "hang", "good", "die", "good", "nan", "infinite", "none", "big", "good")
    scores, failures = scored(verifier, *map(Answer, texts))
    assert [s.value for s in scores] == [0.25, 0, 0, 0.25, 0, 0.25, 0, 0, 0, 1, 0.25]
    assert [s.failed for s in scores] == [
        t in ("raise", "hang", "die", "nan", "infinite", "none") for t in texts
    ]
    assert failures == 6


def test_the_child_that_hung_is_dead_and_another_was_started():
    verifier = Verifier(kind="function", function="verifiers.verifier_hooks:misbehave", timeout_s=1)
    with open_verifiers([verifier]) as verifiers:
        child = verifiers._processes[0]
        first = child._process
        verifiers.score([Answer("hang"), Answer("good")])
        assert first is not None and not first.alive
        assert child.starts == 2
        second = child._process
    assert second is not None and not second.alive


def test_the_reward_is_the_mean_by_weight():
    settings = [Verifier(kind="exact", weight=3), Verifier(kind="format", weight=1)]
    with open_verifiers(settings) as verifiers:
        (score,) = verifiers.score([Answer("4", tags={"answer": "4"})])
        assert verifiers.vote(Answer(" 4 ")) == "4"
    assert score.value == 0.75
    assert score.detail.startswith("exact 1; format 0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:f", "nowhere_at_all:f does not load: .*No module named 'nowhere_at_all'"),
        ("my_broken_verifier:f", "my_broken_verifier:f does not load: .*No module named 'nothing_"),
        ("my_verifier:odd", "my_verifier:odd does not load: .*'odd'"),
        ("my_verifier:not_callable", "my_verifier:not_callable does not load: .*my_verifier:not_callable"),
    ],
)
def test_a_function_that_does_not_load_is_named_with_the_reason(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_verifier.py").write_text("not_callable = 3")
    (tmp_path / "my_broken_verifier.py").write_text("import nothing_like_this")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        check_verifiers([Verifier(kind="function", function=name)])


def test_what_cannot_be_opened(monkeypatch):
    with pytest.raises(RecipeError, match="no_such_function"):
        check_verifiers([Verifier(kind="function", function="verifiers.verifier_hooks:no_such_function")])
    with pytest.raises(RecipeError, match="no_such_module"):
        open_verifiers([Verifier(kind="function", function="no_such_module:f")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="math_verify"):
        open_verifiers([Verifier(kind="math")])
