"""Held-out prompts share no n-gram with training prompts, whatever the seed."""

from __future__ import annotations

import random
import string

import pytest
from corpus_helpers import make_prompt, make_prompts
from hypothesis import given, settings, strategies as st

from stillhouse.corpus import Prompt, load_prompts, split_held_out
from stillhouse.corpus.ngrams import ngrams, words
from stillhouse.errors import CorpusError


def shares(a: str, b: str, n: int) -> bool:
    """Word by word, over every pair of positions; ASCII only."""
    first, second = (
        "".join(c if c in string.ascii_letters + string.digits else " " for c in text).lower().split()
        for text in (a, b)
    )
    if len(first) < n or len(second) < n:
        return first == second
    return any(
        all(first[i + k] == second[j + k] for k in range(n))
        for i in range(len(first) - n + 1)
        for j in range(len(second) - n + 1)
    )


TEXT = st.lists(st.sampled_from("a b c D, e. F-g".split()), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=200)
@given(TEXT, TEXT, st.integers(min_value=1, max_value=4))
def test_overlap_is_what_comparing_every_position_finds(a, b, n):
    assert bool(ngrams(a, n) & ngrams(b, n)) == shares(a, b, n)


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=6, max_size=15, unique=True), st.integers(0, 5), st.integers(0, 99))
def test_split_is_a_partition_without_overlap(texts, count, seed):
    prompts = [make_prompt(text) for text in texts]
    try:
        train, held_out, dropped = split_held_out(prompts, count, ngram=3, seed=seed)
    except CorpusError:
        return
    assert sorted(p.id for p in train + held_out + dropped) == sorted(p.id for p in prompts)
    assert len(held_out) == count
    content = [[p.messages[0]["content"] for p in part] for part in (train, held_out, dropped)]
    assert not any(shares(a, b, 3) for a in content[0] for b in content[1])
    assert all(any(shares(a, b, 3) for b in content[1]) for a in content[2])


def test_split_depends_on_the_seed_and_not_on_the_order():
    prompts = make_prompts(100)
    shuffled = random.Random(0).sample(prompts, 100)
    drawn = {p.id for p in split_held_out(prompts, 30, seed=1)[1]}
    assert drawn == {p.id for p in split_held_out(shuffled, 30, seed=1)[1]}
    assert drawn != {p.id for p in split_held_out(prompts, 30, seed=2)[1]}


def test_every_prompt_is_held_out_equally_often():
    """Chi-squared over 400 seeds; the bound is passed by chance in 1 of 1,000 such tests."""
    prompts = make_prompts(50)
    counts = dict.fromkeys((p.id for p in prompts), 0)
    for seed in range(400):
        for prompt in split_held_out(prompts, 10, ngram=13, seed=seed)[1]:
            counts[prompt.id] += 1
    expected = 400 * 10 / 50
    statistic = (
        sum((count - expected) ** 2 / (expected * (1 - 10 / 50)) for count in counts.values()) * 49 / 50
    )
    assert statistic < 85.4  # the 99.9% point of chi-squared with 49 degrees of freedom


def test_only_what_the_user_said_counts():
    system = {
        "role": "system",
        "content": "You are a helpful assistant that answers every question in a few short words.",
    }
    prompts = [
        Prompt(f"{n}", [system, {"role": "user", "content": f"What is {n}?"}], "test") for n in range(20)
    ]
    train, held_out, dropped = split_held_out(prompts, 5)
    assert (len(train), len(held_out), len(dropped)) == (15, 5, 0)


def test_real_questions_do_not_overlap():
    train, held_out, dropped = split_held_out(load_prompts("package:mmlu"), 57)
    assert (len(train), len(held_out), len(dropped)) == (220, 57, 4)
    texts = [p.messages[0]["content"] for p in held_out]
    for prompt in train[::20]:
        assert not any(shares(prompt.messages[0]["content"], text, 13) for text in texts)


def test_nothing_left_to_train_on():
    with pytest.raises(CorpusError, match=r"left to train on: of 5, 5 are held out(\n|$)") as caught:
        split_held_out(make_prompts(5), 9, ngram=None)
    assert "prompts.held_out" in str(caught.value.hint)


def test_words_of_many_scripts():
    assert words("It's 3.5% — NAÏVE, ﬁne") == ["it", "s", "3", "5", "naïve", "fine"]
    assert words("机器学习 rocks") == ["机", "器", "学", "习", "rocks"]
    assert ngrams("?!", 3) == {"?!"}


@pytest.mark.parametrize(
    "text",
    ["हिन्दी भाषा में लिखा हुआ", "தமிழ் மொழி", "مُحَمَّدٌ رَسُولُ", "שָׁלוֹם עוֹלָם", "བོད་ཡིག", "বাংলা ভাষা"],
)
def test_vowel_signs_belong_to_their_word(text):
    assert words(text) == text.replace("་", " ").split()


def test_words_that_differ_in_a_vowel_sign_are_not_the_same():
    assert len({tuple(words(word)) for word in ("की", "के", "का", "ปี", "ปู", "ปา", "דָּג", "דֹּג")}) == 8
    assert "".join(words("ภาษาไทยเป็นภาษาที่มีวรรณยุกต์")) == "ภาษาไทยเป็นภาษาที่มีวรรณยุกต์"
    assert len(words("ภาษาไทยเป็นภาษาที่มีวรรณยุกต์")) > 3  # no spaces, and yet more than one word
    assert words("❤️ 1️⃣") == ["1"]


def test_two_hindi_texts_without_thirteen_words_in_common():
    a = "नदी के किनारे एक छोटा सा गाँव है जहाँ बहुत लोग रहते हैं"
    b = "मेरे दादा जी के किनारे एक छोटा सा मकान बना हुआ था"
    assert len(words(a)) == len(a.split()) == 13
    assert not ngrams(a, 13) & ngrams(b, 13)


def test_without_an_ngram_nothing_is_dropped():
    prompts = [make_prompt(f"{'the same words again and again ' * 4}{number}") for number in range(20)]
    with pytest.raises(CorpusError, match="15 share 4 words") as caught:
        split_held_out(prompts, 5, ngram=4, seed=0)
    assert "20 prompts share the words 'again and again the'" in str(caught.value.hint)
    assert "filter.contamination_ngram: null" in str(caught.value.hint)
    train, held_out, dropped = split_held_out(prompts, 5, ngram=None, seed=0)
    assert (len(train), len(held_out), dropped) == (15, 5, [])


def test_a_run_splits_by_the_recipes_own_ngram(tmp_path):
    from stillhouse.pipeline.run_context import RunContext
    from stillhouse.recipe.load import parse_recipe

    lines = [f"{number} shares these four words {number * 7}" for number in range(20)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    text = f"""
name: split
teacher: {{model: "embedded:smollm2"}}
prompts: {{source: {tmp_path / "prompts.txt"}, held_out: 5}}
student: {{init: prune, layers: 20}}
"""
    train, _, dropped = RunContext(parse_recipe(text), tmp_path).prompts
    assert (len(train), len(dropped)) == (15, 0)
    looser = RunContext(parse_recipe(text, overrides=["filter.contamination_ngram=5"]), tmp_path)
    assert len(looser.prompts[0]) == 15
    with pytest.raises(CorpusError, match="share 4 words"):
        _ = RunContext(parse_recipe(text, overrides=["filter.contamination_ngram=4"]), tmp_path).prompts
