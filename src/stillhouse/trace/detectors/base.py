"""The `Detector` interface: one test of a trace, complete in its own file.

Add a detector
--------------
1. Write ``detectors/NAME.py`` with two functions and one constant. ``observe`` asks models and returns a
   transcript, one Arrow table. ``judge`` computes a :class:`~stillhouse.trace.finding.Finding` from that
   table and from parameters alone: no model, no file, no clock, and every random number from a seed. The
   constant is a :class:`Detector` and holds everything else that is known about the test.
2. Add the constant to :data:`stillhouse.trace.detectors.registry.DETECTORS`.
3. Add a settings dataclass to :mod:`stillhouse.trace.plan` and a field of the same name as the detector to
   ``PlannedTests``.

A detector that needs a new file of the teacher also adds it to ``TeacherPlan`` and ``teacher_access``, and to
:func:`stillhouse.trace.bundle.commitments.secret_files` if it is secret.

Running, judging, verifying, the report and the command line read the registry and need no change. Keep heavy
imports (torch, transformers) inside ``observe``: judging and verifying must work without them.

The texts of a finding and of an unmet requirement are recorded in ``evidence.json``, and `still trace verify`
compares them. Rewording one makes bundles that were written before differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stillhouse.trace.access import Access
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.finding import Judge, Level
from stillhouse.trace.plan import TeacherPlan, TracePlan


@dataclass(frozen=True)
class Placebo:
    """The same test where there is nothing to find."""

    name: str
    """Which resample or key replaced the real one."""
    transcript: pa.Table
    parameters: Mapping[str, Any]


def _no_parameters(plan: TracePlan, teacher: TeacherPlan, secrets: Mapping[str, bytes]) -> dict[str, Any]:
    return {}


def _no_placebos(plan: TracePlan, transcript: pa.Table, parameters: Mapping[str, Any]) -> Iterator[Placebo]:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Detector:
    """One test of a trace: what it needs, how it asks, how it judges, and how the report explains it."""

    name: str
    """Its field in ``PlannedTests``, the name of its transcript, and its name in ``evidence.json``."""
    level: Level
    """The level that it can reach; a field `level` of its settings takes precedence."""
    title: str
    """Heading in the report."""
    explanation: str
    """What the test does, for a reader without statistics."""
    unmet_requirement: Callable[[TracePlan, Access], str | None]
    """Why the test cannot run with this access and what would let it; None where it can."""
    observe: Callable[[Case], pa.Table]
    """Asks the models of a case; returns the transcript."""
    judge: Judge
    """Computes the finding from a transcript and parameters; pure."""
    parameters: Callable[[TracePlan, TeacherPlan, Mapping[str, bytes]], dict[str, Any]] = _no_parameters
    """What ``judge`` takes besides `seed` and `alpha`; the mapping holds the opened secret files by name."""
    placebos: Callable[[TracePlan, pa.Table, Mapping[str, Any]], Iterator[Placebo]] = _no_placebos
    """The detector's own placebos; those of placebo accounts are made for every detector."""
    about_texts: bool = False
    """Whether it tests an author's published texts instead of a teacher's delivered outputs."""

    def level_in(self, plan: TracePlan) -> Level:
        """The level that the test can reach as planned."""
        return getattr(getattr(plan.tests, self.name), "level", self.level)

    def judge_parameters(
        self, plan: TracePlan, teacher: TeacherPlan, secrets: Mapping[str, bytes]
    ) -> dict[str, Any]:
        """All parameters of ``judge``.

        Args:
            secrets: contents of the files in :func:`stillhouse.trace.bundle.commitments.secret_files`, by
                name.
        """
        parameters = {"seed": plan.seed, "alpha": plan.alpha} | self.parameters(plan, teacher, secrets)
        # As JSON returns them: a finding records its parameters, and `verify` compares them with these.
        return json.loads(json.dumps(parameters))
