"""The verdict of each entry for each purpose, written by hand from the clauses, and how a run is refused."""

from typing import get_args

import pytest
from hypothesis import given, strategies as st

from stillhouse.errors import TermsError
from stillhouse.provenance import (
    all_terms,
    combine_verdicts,
    explain_terms,
    find_terms,
    judge_terms,
    naming_warning,
    require_allowed,
)
from stillhouse.provenance.terms import terms_by_key
from stillhouse.recipe import Purpose

PURPOSES = get_args(Purpose)

# research, personal, commercial, competing: y allowed, n refused, ? unknown
TABLE = """
unknown                 ????
own                     yyyy
agreement               ????
openai                  yyyn
anthropic               nnnn
gemini-api              yyyn
mistral-api             yyy?
xai-api                 nnnn
deepseek-api            yyyy
zai-api                 nnnn
cohere-api              ????
moonshot-api            ????
minimax-api             ????
alibaba-api             ????
gemma                   yyyy
gemma-4                 yyyy
llama-2                 nnnn
llama-3                 nnnn
llama-3.1               yyyy
llama-3.2               yyyy
llama-3.3               yyyy
llama-4                 yyyy
qwen-apache             yyyy
qwen                    yyyy
qwen-research           ynnn
qwen-community          ????
tongyi-qianwen          nnnn
tongyi-qianwen-research nnnn
deepseek-mit            yyyy
deepseek-license        yyyy
mistral-apache          yyyy
mistral-research        ynnn
xai-community           nnnn
cohere-cc-by-nc         yynn
gpt-oss                 yyyy
kimi                    yyyy
kimi-mit                yyyy
glm                     yyyy
glm-license             ????
minimax-m2              yyyy
minimax-other           ????
phi                     yyyy
olmo                    yyyy
granite                 yyyy
codestral               yynn
yi                      yyyy
yi-license              ????
falcon-apache           yyyy
falcon                  yyyy
falcon-180b             ????
dbrx                    nnnn
bloom                   yyyy
nvidia-open             yyyy
nvidia-cosmos           yyyy
nvidia-research         ?nnn
exaone                  nnnn
grok-1                  yyyy
smollm                  yyyy
apache-2.0              yyyy
mit                     yyyy
bsd-3-clause            yyyy
cc-by-4.0               yyyy
cc-by-nc-4.0            yynn
openrail-m              yyyy
bigcode-openrail-m      yyyy
"""
BY_HAND = dict(line.split() for line in TABLE.split("\n") if line)
MEANS = {"y": True, "n": False, "?": None}


def test_the_hand_written_table_is_whole():
    assert set(BY_HAND) == {entry.key for entry in all_terms()}


@pytest.mark.parametrize(
    ("key", "purpose", "mark"),
    [
        (key, purpose, mark)
        for key, marks in BY_HAND.items()
        for purpose, mark in zip(PURPOSES, marks, strict=True)
    ],
)
def test_the_verdict_for_each_purpose(key, purpose, mark):
    verdict = judge_terms(terms_by_key()[key], purpose)
    assert verdict.allowed is MEANS[mark]
    assert terms_by_key()[key].name in verdict.reason
    if verdict.allowed is False:
        assert verdict.duties == ()


@pytest.mark.parametrize("key", ["llama-2", "llama-3", "tongyi-qianwen", "xai-community", "dbrx"])
def test_some_outputs_may_improve_their_own_family_only(key):
    terms, others = terms_by_key()[key], terms_by_key()["apache-2.0"]
    verdict = judge_terms(terms, "research", student=terms)
    assert verdict.allowed is True and verdict.duties == terms.duties
    assert judge_terms(terms, "research", student=others).allowed is False


def test_a_research_licence_stays_one_within_its_family():
    terms = terms_by_key()["tongyi-qianwen-research"]
    assert judge_terms(terms, "research", student=terms).allowed is True
    assert judge_terms(terms, "commercial", student=terms).allowed is False


def test_a_ban_without_an_exception_has_none():
    terms = terms_by_key()["anthropic"]
    assert judge_terms(terms, "research", student=terms).allowed is False


def test_conditions_are_allowed_with_their_duties():
    verdict = require_allowed(find_terms("hub:google/gemma-3-270m"), "commercial", None)
    assert verdict.allowed is True
    assert any("Gemma Prohibited Use Policy" in duty for duty in verdict.duties)


@pytest.mark.parametrize(
    ("key", "purpose"),
    [
        (key, p)
        for key, marks in BY_HAND.items()
        for p, mark in zip(PURPOSES, marks, strict=True)
        if mark == "n"
    ],
)
@pytest.mark.parametrize("accepted", [None, "because I want to"])
def test_a_ban_is_refused_with_status_3_and_cannot_be_accepted_away(key, purpose, accepted):
    terms = terms_by_key()[key]
    with pytest.raises(TermsError) as caught:
        require_allowed(terms, purpose, accepted)
    assert caught.value.exit_status == 3
    assert isinstance(caught.value, PermissionError)
    assert terms.clause in caught.value.message and terms.source in caught.value.message
    assert terms.checked in caught.value.message
    assert "still terms" in (caught.value.hint or "")


def test_the_hint_names_what_would_be_allowed():
    with pytest.raises(TermsError) as caught:
        require_allowed(terms_by_key()["cc-by-nc-4.0"], "commercial", None)
    assert "research or personal" in (caught.value.hint or "")
    with pytest.raises(TermsError) as caught:
        require_allowed(terms_by_key()["llama-2"], "research", None)
    assert "student.init: prune" in (caught.value.hint or "")


@pytest.mark.parametrize("nothing", [None, "", "  \n"])
def test_unknown_terms_need_a_reason(nothing):
    with pytest.raises(TermsError) as caught:
        require_allowed(terms_by_key()["unknown"], "research", nothing)
    assert caught.value.exit_status == 3
    assert "--accept-terms" in (caught.value.hint or "") and "teacher.terms" in (caught.value.hint or "")


@given(st.text(min_size=1).filter(str.strip))
def test_the_reason_for_accepting_unknown_terms_is_kept(reason):
    verdict = require_allowed(terms_by_key()["unknown"], "personal", reason)
    assert verdict.allowed is None
    assert verdict.accepted == reason.strip()
    assert reason.strip() in verdict.reason


def test_a_reason_changes_nothing_where_terms_are_known():
    terms = terms_by_key()["mit"]
    assert require_allowed(terms, "research", "whatever") == judge_terms(terms, "research")


@pytest.mark.parametrize(
    ("key", "name", "warned"),
    [
        ("llama-3.1", "quickstart", True),
        ("llama-3.1", "Llama-quickstart", False),
        ("llama-3.1", "llama-quickstart", False),
        ("llama-3", "Llama-quickstart", True),
        ("llama-3", "Llama 3 quickstart", False),
        ("mit", "quickstart", False),
    ],
)
def test_a_name_that_the_terms_do_not_allow_is_warned_of(key, name, warned):
    warning = naming_warning(terms_by_key()[key], name)
    assert (warning is not None) is warned
    if warning:
        assert name in warning and "Llama" in warning


@pytest.mark.parametrize("entry", all_terms(), ids=lambda entry: entry.key)
def test_an_explanation_has_every_field_and_every_purpose(entry):
    explained = explain_terms(entry)
    assert explained["clause"] == entry.clause and explained["duties"] == entry.duties
    marks = [explained["verdicts"][purpose]["allowed"] for purpose in PURPOSES]
    assert marks == [MEANS[mark] for mark in BY_HAND[entry.key]]


@given(st.lists(st.sampled_from(sorted(BY_HAND)), min_size=1, max_size=4), st.sampled_from(PURPOSES))
def test_several_teachers_are_judged_as_strictly_as_the_strictest(keys, purpose):
    verdicts = [judge_terms(terms_by_key()[key], purpose) for key in keys]
    found = combine_verdicts(verdicts)
    letters = {BY_HAND[key][PURPOSES.index(purpose)] for key in keys}
    assert found.allowed is MEANS["n" if "n" in letters else "?" if "?" in letters else "y"]
    assert set(found.duties) == {duty for verdict in verdicts for duty in verdict.duties}
    if len(set(keys)) == 1:
        assert found == verdicts[0]
