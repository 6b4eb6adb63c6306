"""The table: its form, its coverage, and the rejection of invalid entries."""

import re
from datetime import date

import pytest
from pydantic import ValidationError

from stillhouse.provenance import all_terms, terms_page
from stillhouse.provenance.terms import parse_terms

GOOD = """
- key: a
  name: A
  outputs_may_train: "yes"
  use: any
  may_compete: "yes"
  passes_on: false
  clause: says so
  source: A, section 1
  checked: "2026-11-23"
"""


def test_the_well_known_terms_are_there():
    keys = {entry.key for entry in all_terms()}
    assert keys >= {
        *("openai", "anthropic", "gemini-api", "mistral-api", "xai-api", "deepseek-api", "cohere-api"),
        *("gemma", "gemma-4", "llama-2", "llama-3", "llama-3.1", "llama-3.2", "llama-3.3", "llama-4"),
        *("qwen-apache", "qwen", "qwen-research", "tongyi-qianwen", "deepseek-mit", "deepseek-license"),
        *("mistral-apache", "mistral-research", "cohere-cc-by-nc", "smollm", "gpt-oss"),
        *("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail-m", "bigcode-openrail-m"),
        *("unknown", "own", "agreement"),
    }


@pytest.mark.parametrize("entry", all_terms(), ids=lambda entry: entry.key)
def test_an_entry_has_a_source_and_a_date_of_its_check(entry):
    assert entry.clause.endswith(".") and entry.source
    if entry.checked == "unverified":
        assert entry.note or entry.key == "cc-by-4.0", "an unverified entry says what was not seen"
    else:
        assert date(2026, 1, 1) <= date.fromisoformat(entry.checked) <= date(2100, 1, 1)
    if entry.key not in ("unknown", "own", "agreement"):
        assert any((entry.match.hosts, entry.match.names, entry.match.licenses, entry.match.model_types))
    for value in entry.match.licenses:
        assert value == re.sub(r"[\s_]+", "-", value.lower()), "licence fields are compared in this form"


def test_declared_entries_are_never_found_by_matching():
    for entry in all_terms():
        if entry.key in ("unknown", "own", "agreement"):
            assert not any(
                (entry.match.hosts, entry.match.names, entry.match.licenses, entry.match.model_types)
            )


def test_a_good_table_is_read():
    (entry,) = parse_terms(GOOD)
    assert (entry.key, entry.outputs_may_train, entry.duties) == ("a", "yes", ())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('outputs_may_train: "yes"', "outputs_may_train: yes"),  # YAML 1.1 reads a bare yes as true
        ("use: any", "use: fun"),
        ("  clause: says so\n", ""),
        ("clause: says so", "clause: ''"),
        ("use: any", "use: any\n  dutys: [x]"),
        ("use: any", "use: any\n  match: {name: [x]}"),
        ('checked: "2026-11-23"', "checked: 2026-11-23"),  # a date, not text
    ],
)
def test_a_malformed_entry_is_refused(old, new):
    assert old in GOOD
    with pytest.raises(ValidationError):
        parse_terms(GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('outputs_may_train: "yes"', "outputs_may_train: conditions"),
        ("passes_on: false", "passes_on: true"),
        ("passes_on: false", "passes_on: false\n  keeps_license: true"),
        ("use: any", "use: any\n  own_family: true"),
        ('checked: "2026-11-23"', "checked: yesterday"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(old, new):
    assert old in GOOD
    with pytest.raises(AssertionError):
        parse_terms(GOOD.replace(old, new))


def test_a_key_given_twice_and_a_broken_pattern_are_refused():
    with pytest.raises(AssertionError, match="one key"):
        parse_terms(GOOD + GOOD)
    with pytest.raises(re.error):
        parse_terms(GOOD.replace("use: any", "use: any\n  match: {names: ['(']}"))


def test_the_package_has_every_public_name():
    import stillhouse.provenance as package

    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        package.nothing_like_it  # noqa: B018


def test_the_documentation_has_the_table(request):
    page = request.config.rootpath / "docs" / "terms-table.md"
    assert page.read_text("utf-8") == terms_page(), "run `make docs`"
