"""Formatted numbers and the terminal's table of results."""

from __future__ import annotations

import pytest
from evaluate_sample import estimate, sample_report
from hypothesis import given, strategies as st

from stillhouse.console import plain_table
from stillhouse.evaluate import results_table
from stillhouse.pages.numbers import (
    format_bytes,
    format_count,
    format_dollars,
    format_duration,
    format_interval,
    format_number,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.71234, "0.712"), (9.996, "10.0"), (12.34, "12.3"), (880.4, "880"), (12345.0, "12,300"),
     (2.5e7, "2.50e+07"), (-0.0512, "−0.0512"), (float("inf"), "∞"), (None, "–")],
)  # fmt: skip
def test_formatted_numbers(value, text):
    assert format_number(value) == text


@given(st.floats(1e-5, 9e5))
def test_a_formatted_number_is_within_half_a_unit_of_its_third_digit(value):
    assert float(format_number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_an_interval_gets_the_decimals_that_its_width_deserves():
    assert format_interval(estimate(0.7231, 0.0312)) == ("0.723", "0.692 to 0.754")
    assert format_interval(estimate(0.7231, 0.0312), scale=100) == ("72.3", "69.2 to 75.4")
    assert format_interval(estimate(880.2, 140.0)) == ("880", "740 to 1,020")
    assert format_interval(estimate(-0.138, 0.021), signed=True) == ("−0.138", "−0.159 to −0.117")
    assert format_interval(estimate(0.7231, 0) | {"low": None, "high": None}) == ("0.72", "no interval")


@pytest.mark.parametrize(
    ("value", "text"),
    [(512, "512 B"), (98_600_000, "98.6 MB"), (324_960_000, "325 MB"), (999_700_000, "1 GB")],
)
def test_formatted_bytes(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(900, "900"), (134_515_008, "135 M"), (1_240_000_000, "1.24 B")])
def test_formatted_counts(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (-1, "0 s"),
    ],
)
def test_formatted_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(0, "$0.00"), (1234.5, "$1,234.50"), (0.1, "$0.10"), (0.034, "$0.034"), (0.00012, "$0.00012")],
)
def test_no_price_reads_as_zero(dollars, text):
    assert format_dollars(dollars) == text


@given(
    st.floats(0, 30),
    st.floats(0, 1),
    st.floats(1, 90_000),
    st.integers(10_000, 9_000_000_000),
    st.floats(0.1, 9000),
)
def test_the_terminals_table_keeps_within_80_columns(kl, agreement, perplexity, size_bytes, speed):
    report = sample_report()
    for model in report["models"][1:]:
        model |= {
            "kl": estimate(kl, kl / 20),
            "agreement": estimate(agreement, 0.01),
            "perplexity": estimate(perplexity, perplexity / 20),
            "bytes": size_bytes,
            "tokens_per_s": {"median": speed, "low": speed, "high": speed},
        }
    table = plain_table(*results_table(report))
    assert max(map(len, table.splitlines())) <= 80


def test_the_terminals_table_holds_value_and_interval():
    _, columns, rows = results_table(sample_report())
    assert columns == ["model", "KL nats/token", "top-1 %", "perplexity", "MB", "tok/s"]
    assert rows[2] == ["student", "0.72 [0.69–0.75]", "71 [70–72]", "4.10 [3.86–4.35]", "325", "41.0"]
    assert rows[0][:3] == ["teacher", "0", "100"]
