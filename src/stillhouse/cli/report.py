"""Prints a report's table: the one thing a run shows on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.console import console


def show_report(report: Mapping[str, Any]) -> None:
    """The table and the finding under it; the whole report as JSON when that was asked for."""
    from stillhouse.evaluate import results_table

    console.table(*results_table(report))
    if not console.json:
        print(report["verdict"]["sentence"])
    console.data(report)
