"""The report page: escaping, no external resources, content, reproducibility."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from evaluate_sample import estimate, sample_report
from pydantic import ValidationError

from stillhouse.errors import StorageError
from stillhouse.evaluate import results_table, write_report
from stillhouse.evaluate.report import draw, plain_value, render_page
from stillhouse.evaluate.schema import Report
from stillhouse.stats import exponential, interval

VOID = {"meta", "br", "link", "img", "hr", "input"}
ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)"> & {{ 7 * 7 }} </style> "\'$x$'


class Page(HTMLParser):
    """Tags, attributes and text; an element that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_page(Report.model_validate(sample_report()).model_dump()))


def rendered(**changes) -> Page:
    return Page(render_page(Report.model_validate(sample_report() | changes).model_dump()))


def test_the_files_are_written_and_the_json_is_the_report(tmp_path):
    write_report(tmp_path, sample_report())
    saved = json.loads((tmp_path / "report.json").read_text())
    assert Report.model_validate(saved) == Report.model_validate(sample_report())
    assert saved["schema_version"] == 1
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, sample_report())
    for file in ("report.html", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_is_loaded_and_nothing_runs(page):
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "img", "image", "form", "a"})
    assert page.attributes("src") == []
    assert [name for _, attrs in page.tags for name in attrs if name.startswith("on")] == []
    references = page.attributes("href") + page.attributes("xlink:href")
    assert all(reference.startswith("#") for reference in references)
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    markup = render_page(Report.model_validate(sample_report()).model_dump())
    assert not re.search(r"@import|url\((?!#)", markup)


def test_every_text_from_outside_is_escaped():
    report = sample_report()
    answers = [{"prompt": ATTACK, "messages": [], "replies": dict.fromkeys(("teacher", "student"), ATTACK)}]
    models = [m | {"label": f"{m['key']} {ATTACK}", "format": ATTACK} for m in report["models"]]
    page = rendered(
        name=ATTACK,
        command=ATTACK,
        recipe=ATTACK,
        answers=answers,
        models=models,
        terms={ATTACK: ATTACK, "duties": [ATTACK, ATTACK]},
        lineage={"teacher": ATTACK},
        corpus={ATTACK: 3, "rejected": {ATTACK: 1}},
        student_facts={ATTACK: {ATTACK: ATTACK}},
        environment={ATTACK: ATTACK},
        verdict=report["verdict"] | {"headline": ATTACK, "sentence": ATTACK},
        objective=ATTACK,
        stages=[{"name": ATTACK, "seconds": 1.0}],
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "49" not in page.text.split("Results")[0]


def test_ids_are_unique_and_references_lead_somewhere(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    styles = " ".join(page.attributes("clip-path") + page.attributes("style"))
    wanted = {r.removeprefix("#") for r in page.attributes("xlink:href") + page.attributes("href")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", styles)) | set(page.attributes("aria-labelledby"))
    assert wanted
    assert wanted <= set(ids)


def test_pictures_are_described_and_take_their_colours_from_the_page(page):
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 6
    assert all(p["role"] == "img" and len(p["aria-label"] or "") > 30 for p in pictures)
    svg = "".join(draw(Report.model_validate(sample_report()).model_dump()).values())
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    names = set(re.findall(r"var\((--[a-z]+)\)", svg))
    css = render_page(Report.model_validate(sample_report()).model_dump()).split("</style>")[0]
    assert names
    assert all(f"{name}:" in css for name in names)


def test_the_widest_intervals_that_a_recipe_may_ask_for_can_be_drawn():
    """Two documents that disagree, at level 0.9999: the perplexity's upper end is beyond all numbers."""
    report = sample_report()
    wide = interval([1.0, 8.0], [1, 1], 0.9999)
    for model in report["models"]:
        model |= {"kl": wide.to_dict(), "nll": wide.to_dict(), "perplexity": exponential(wide).to_dict()}
    assert len(draw(Report.model_validate(report).model_dump())) == 6


def test_tables_have_captions_and_scopes(page):
    assert [t for t, _ in page.tags].count("table") == [t for t, _ in page.tags].count("caption") == 4
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_the_numbers_of_the_table_are_those_of_the_report(page):
    words = " ".join(page.text.split())
    measures = "0.723 0.692 to 0.754 71.4 70.3 to 72.5 4.10 3.86 to 4.35"
    assert f"Student, after student (forward KL) {measures} 81.2 M 325.0 MB" in words
    assert "Student − control −0.138 −0.159 to −0.117 +2.60 +2.00 to +3.20" in words
    assert "Teacher embedded:smollm2 0 by definition 100 by definition" in words
    assert "50 held-out documents, 4,870 counted tokens" in words
    assert "49 degrees of freedom" in words


def test_what_was_not_measured_leaves_no_empty_section():
    report = sample_report()
    bare = {key: report[key] for key in ("name", "created", "held_out")}
    student = report["models"][2] | {"kl": None, "agreement": None, "tokens_per_s": None}
    verdict = {"outcome": "unmeasured", "against": None, "headline": "Measured", "sentence": "Alone."}
    page = Page(render_page(Report(**bare, models=[student], verdict=verdict).model_dump()))
    for absent in ("Answers side by side", "Training", "Corpus", "Cost", "Terms", "Difference"):
        assert absent not in page.text
    assert "Alone." in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_a_single_document_shows_no_interval_and_few_documents_are_warned_of():
    report = sample_report()
    single = estimate(0.5, 0.1) | {"low": None, "high": None, "documents": 1}
    models = [m | {"kl": single, "agreement": single, "perplexity": single} for m in report["models"]]
    page = rendered(
        models=models,
        held_out={"documents": 1, "tokens": 9},
        comparison={"control": {"kl": single, "agreement": single, "nll": single}},
    )
    assert "no interval" in page.text
    assert "Few documents:" in page.text
    assert "Few documents:" not in rendered().text


@pytest.mark.parametrize("change", [{"stagess": []}, {"models": "none"}, {"schema_version": 2}])
def test_a_report_that_is_none_is_refused_and_nothing_is_written(tmp_path, change):
    with pytest.raises(ValidationError):
        write_report(tmp_path, sample_report() | change)
    assert list(tmp_path.iterdir()) == []


def test_no_place_to_write_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "run", sample_report())


def test_an_infinite_perplexity_is_null_in_json_and_a_sign_on_the_page(tmp_path):
    report = sample_report()
    report["models"][1]["perplexity"] |= {"value": float("inf"), "high": float("inf")}
    write_report(tmp_path, report)
    text = (tmp_path / "report.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["models"][1]["perplexity"]["value"] is None
    assert "∞" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (2048, "2048"),
        (0.98765, "0.9877"),
        ([1, 2, 3], "1, 2, 3"),
        ([], "–"),
        ({"a_b": 1, "c": False}, "a b 1; c no"),
        ("as it is", "as it is"),
    ],
)
def test_facts_read_as_text(value, text):
    assert plain_value(value) == text


@pytest.mark.parametrize(
    ("rates", "cells"),
    [
        ((37.04, 120.0, 118.2, 119.9), ["37.0", "120.0", "118.2", "119.9"]),
        ((1313.4, 355.0, 400.0, 500.2), ["1,313", "355", "400", "500"]),
        ((0.512, 7.0, 7.0, 7.0), ["0.51", "7.00", "7.00", "7.00"]),
    ],
)
def test_speeds_in_the_terminal_have_one_precision_and_no_exponent(rates, cells):
    report = sample_report()
    for model, rate in zip(report["models"], rates, strict=True):
        model["tokens_per_s"]["median"] = rate
    _, columns, rows = results_table(report)
    assert [row[columns.index("tok/s")] for row in rows] == cells
