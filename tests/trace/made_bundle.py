"""A bundle made from synthetic scores: a suspect that prefers used outputs by a known margin; no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from stillhouse.trace import run
from stillhouse.trace.access import Access
from stillhouse.trace.bundle.commitments import commit, now
from stillhouse.trace.bundle.files import transcript_path, write_transcript
from stillhouse.trace.bundle.schema import Evidence
from stillhouse.trace.plan import PlannedTests, TeacherPlan, TracePlan

ACCOUNTS = ("acme", "other")


def scores(items: int, draws: int, used: float, *, seed: int, margin: float = 2.0) -> pa.Table:
    """A transcript of the exchangeable test: normal scores, the delivered ones raised for a share of outputs.

    Every other output went to the account ``other``, and none of these was used.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(items, draws + 1))
    accounts = [ACCOUNTS[number % 2] for number in range(items)]
    trained = (rng.random(items) < used) & (np.arange(items) % 2 == 0)
    values[:, 0] += margin * trained
    rows = [(number, draw) for number in range(items) for draw in range(draws + 1)]
    return pa.table(
        {
            "id": [f"{number:05d}" for number, _ in rows],
            "account": [accounts[number] for number, _ in rows],
            "draw": pa.array([draw for _, draw in rows], pa.int32()),
            "text": [f"a text of some length, number {number}, draw {draw}" for number, draw in rows],
            "tokens": pa.array([10] * len(rows), pa.int32()),
            "loglik": (10 * values).ravel(),
        }
    )


def write_log(path: Path, items: int) -> Path:
    """A log of so many outputs, every other one to another account."""
    lines = [
        {"prompt": f"q {n}", "output": f"a text of some length, number {n}", "account": ACCOUNTS[n % 2]}
        for n in range(items)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_plan(log: Path, suspect: Path, **changes) -> TracePlan:
    """A plan with only the exchangeable test, on the account ``acme``, with ``other`` as a placebo."""
    teacher = TeacherPlan(
        name="ours", log=str(log), resamples=str(log), accounts=("acme",), placebo_accounts=("other",)
    )
    tests = PlannedTests(radioactivity=None, canaries=None, style=None, identity=None, weights=None)
    return TracePlan(**{"suspect": str(suspect), "teachers": (teacher,), "tests": tests} | changes)


def make_bundle(
    directory: Path, suspect: Path, *, used: float = 0.3, items: int = 600, key=None, **changes
) -> Evidence:
    """A finished bundle for a suspect that used this share of the outputs to ``acme``."""
    directory.mkdir(parents=True)
    log = write_log(directory.parent / f"{directory.name}.jsonl", items)
    plan = make_plan(log, suspect, **changes)
    made = commit(plan, directory)
    begun = now()
    for number, teacher in enumerate(plan.teachers):
        table = scores(items, 3, used if number == 0 else 0.0, seed=number)
        write_transcript(directory / transcript_path(teacher.name, "exchangeable"), table, begun, now())
    access = {
        teacher.name: Access(frozenset({"logprobs"}), frozenset({"resamples"}), 0)
        for teacher in plan.teachers
    }
    logs = {teacher.name: run.read_teacher_log(teacher) for teacher in plan.teachers}
    return run._write_bundle(plan, directory, made, logs, access, key, "still trace")
