"""``still run`` and ``still plan`` of a study: runs or plans all arms for all seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stillhouse.cli.run_stages import cost, warn_of_missing_keys
from stillhouse.console import console
from stillhouse.recipe.study import load_study


def show_study(file: Path, overrides: tuple[str, ...], out: Path | None, *, dry_run: bool) -> None:
    """Runs a study and prints its table and the verdicts on its claims; ``dry_run`` plans it."""
    if dry_run:
        show_study_plan(file, overrides, out)
        return
    study = load_study(file, overrides)
    from stillhouse import pipeline
    from stillhouse.evaluate import study_table
    from stillhouse.evaluate.study import difference_in_words

    directory = out or Path("runs") / study.study
    results = pipeline.run_study(study, file, directory, pipeline.run)
    console.table(*study_table(results))
    for claim in results["claims"]:
        console.text(f"{claim['verdict']}: {claim['says']}\n    {difference_in_words(claim)}")
    console.data(results)
    console.info(f"report: {directory / 'study.html'}")


def show_study_plan(file: Path, overrides: tuple[str, ...], out: Path | None = None) -> None:
    """Prints what each arm costs for one seed, and what the study costs; raises TermsError as a run does."""
    from stillhouse.pages.numbers import format_column, format_duration
    from stillhouse.pipeline.study_plan import plan_study
    from stillhouse.provenance import require_all_allowed

    study = load_study(file, overrides)
    planned = plan_study(study, file, out or Path("runs") / study.study)
    memory = format_column(
        [*(a.run.peak_memory_bytes for a in planned.arms), planned.peak_memory_bytes], unit="B"
    )
    rows = [
        [
            arm.name,
            f"{sum(s.tokens for s in arm.run.stages):,}",
            peak,
            format_duration(arm.seconds),
            arm.label,
        ]
        for arm, peak in zip(planned.arms, memory, strict=False)
    ]
    seeds = f"{planned.seeds} seed{'s' if planned.seeds != 1 else ''}"
    rows.append([f"all, {seeds}", "", memory[-1], format_duration(planned.seconds), cost(planned.dollars)])
    console.table(
        f"Plan of {study.study}, by arm for one seed", ["arm", "tokens", "memory", "time", "note"], rows
    )
    console.data(
        {
            "study": study.study,
            "seeds": list(study.seeds),
            "arms": {
                arm.name: dataclasses.asdict(arm.run)
                | {"tests_seconds": arm.tests_seconds, "seconds": arm.seconds}
                for arm in planned.arms
            },
            "seconds": planned.seconds,
            "peak_memory_bytes": planned.peak_memory_bytes,
            "dollars": planned.dollars,
        }
    )
    warn_of_missing_keys(dict.fromkeys(key for arm in planned.arms for key in arm.missing_keys))
    for arm in planned.arms:
        require_all_allowed(arm.terms, arm.recipe.purpose, arm.recipe.accept_terms, student=arm.start)
