"""Prints a report: its table and verdict, or the whole report as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.console import console


def show_report(report: Mapping[str, Any]) -> None:
    """Prints the table and the verdict, or with ``--json`` the whole report."""
    from stillhouse.evaluate import results_table

    console.table(*results_table(report))
    if not console.json:
        print(report["verdict"]["sentence"])
    console.data(report)
