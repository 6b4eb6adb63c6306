"""The evidence page: its content, and that it runs and loads nothing."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from made_bundle import make_bundle

from stillhouse.hashing import sha256_file
from stillhouse.pages.numbers import format_scientific
from stillhouse.trace.bundle.files import read_evidence
from stillhouse.trace.bundle.schema import Evidence, evidence_text
from stillhouse.trace.report.page import render_page
from stillhouse.trace.verify import verify_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_teacher):
    directory = tmp_path_factory.mktemp("page") / "evidence"
    make_bundle(directory, tiny_teacher)
    return directory


class Page(HTMLParser):
    """All tags, texts, and attributes that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_loads_nothing_and_runs_nothing(bundle):
    page = Page((bundle / "report.html").read_text())
    assert not {"script", "img", "iframe", "link", "object", "form"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)


def test_a_lawyer_and_a_statistician_find_what_they_look_for(bundle):
    text = " ".join("".join(Page((bundle / "report.html").read_text()).text).split())
    for words in (
        "Hard evidence at level L2",
        "What this does not show",
        "Rival explanations that remain",
        "the account was shared",
        "Null hypothesis:",
        "p-value, one-sided",
        "Does it hold?",
        "Glossary",
        "still trace verify",
        "Committed at",
    ):
        assert words in text
    finding = read_evidence(bundle).teachers[0].tests[0].finding
    assert finding is not None
    assert format_scientific(finding.p_value) in text and format_scientific(finding.e_value) in text


def test_four_pictures_are_described_in_words(bundle):
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', (bundle / "report.html").read_text())
    assert [label.split(" ")[0] for label in labels] == ["Evidence", "Evidence", "Outputs", "21"]


def test_what_models_and_users_wrote_is_escaped(bundle):
    values = read_evidence(bundle).model_dump()
    values["name"] = values["question"] = values["teachers"][0]["log"]["path"] = "<script>alert(1)</script>"
    values["teachers"][0]["tests"][0]["finding"]["rivals"] = ["<img src=x>"]
    page = render_page(Evidence.model_validate(values), "a: <b>")
    assert "<script" not in page and "<img" not in page and "a: &lt;b&gt;" in page


def test_a_test_that_did_not_run_says_why(bundle):
    values = read_evidence(bundle).model_dump()
    part = values["teachers"][0]["tests"][0]
    part["finding"]["reason"] = "the suspect refused."
    values["teachers"][0]["tests"].append(
        {"test": "canaries", "level": "L2", "weight": 1.0, "hindrance": "needs the canaries."}
    )
    text = "".join(Page(render_page(Evidence.model_validate(values), "")).text)
    assert "the suspect refused." in text and "It needs the canaries." in text
    assert "counts as E = 1" in text


def with_another_page(bundle, directory):
    """A copy with a changed page, whose hash is in the evidence."""
    copy = shutil.copytree(bundle, directory)
    report = copy / "report.html"
    report.write_text(report.read_text().replace("Hard evidence", "No evidence"))
    evidence = read_evidence(copy)
    files = evidence.files | {"report.html": sha256_file(report)}
    (copy / "evidence.json").write_text(evidence_text(evidence.model_copy(update={"files": files})))
    return copy


def test_a_page_that_says_something_else_is_noticed_though_its_hash_fits(bundle, tmp_path):
    copy = with_another_page(bundle, tmp_path / "evidence")
    assert verify_bundle(copy).differences == ["report.html does not match the evidence"]


def test_a_page_made_by_other_code_may_be_worded_otherwise_and_a_note_says_so(bundle, tmp_path, monkeypatch):
    copy = with_another_page(bundle, tmp_path / "evidence")
    monkeypatch.setattr("stillhouse.trace.verify.code_hash", lambda: "other")
    result = verify_bundle(copy)
    assert result.differences == []
    assert any("report.html was made by other code" in note for note in result.notes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.01234, "0.0123"),
        (12300.4, "12,300"),
        (2.6e-24, "2.6 × 10⁻²⁴"),
        (1e9, "10⁹"),
        (9.99e8, "1.0 × 10⁹"),
        (-3.5, "−3.5"),
        (1000, "1,000"),
        (99.96, "100"),
    ],
)
def test_numbers_as_people_read_them(value, text):
    assert format_scientific(value) == text
