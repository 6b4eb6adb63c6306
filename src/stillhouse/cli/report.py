"""Prints a report: its tables and verdict, or the whole report as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.console import console


def show_report(report: Mapping[str, Any]) -> None:
    """Prints models, verdict and differences, or with ``--json`` the whole report."""
    from stillhouse.evaluate import difference_table, results_table
    from stillhouse.evaluate.report import few_documents

    verdict = report["verdict"]
    console.table(*results_table(report))
    console.text("")
    if headline := verdict.get("headline"):
        console.text(f"{headline}.")
    console.text(verdict["sentence"])
    if warning := few_documents(report):
        console.warn(warning)
    if report.get("comparison"):
        console.text("")
        console.table(*difference_table(report))
    console.data(report)
