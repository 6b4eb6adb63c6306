"""``still run`` of a study: runs all arms for all seeds and prints the table of results."""

from __future__ import annotations

from pathlib import Path

from stillhouse.console import console
from stillhouse.recipe.study import Study, load_study


def show_study(file: Path, overrides: tuple[str, ...], out: Path | None, *, dry_run: bool) -> None:
    """Runs a study and prints its table and the verdicts on its claims; ``dry_run`` only lists its arms."""
    study = load_study(file, overrides)
    if dry_run:
        _show_arms(study)
        return
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


def _show_arms(study: Study) -> None:
    seeds = ", ".join(map(str, study.seeds))
    rows = [[name, arm.label] for name, arm in study.arms.items()]
    console.table(f"{study.study}: seeds {seeds}, tests {', '.join(study.tests)}", ["arm", "what"], rows)
    console.data({"study": study.study, "seeds": list(study.seeds), "arms": dict(rows)})
