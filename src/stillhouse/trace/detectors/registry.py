"""All detectors, in the order of the plan. See :mod:`stillhouse.trace.detectors.base` for how to add one."""

from __future__ import annotations

from collections.abc import Mapping

from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.canaries import CANARIES
from stillhouse.trace.detectors.exchangeable.detector import EXCHANGEABLE
from stillhouse.trace.detectors.identity import IDENTITY
from stillhouse.trace.detectors.radioactivity.detector import RADIOACTIVITY
from stillhouse.trace.detectors.rephrasings import REPHRASINGS
from stillhouse.trace.detectors.style import STYLE
from stillhouse.trace.detectors.training_order import TRAINING_ORDER
from stillhouse.trace.detectors.weights_lineage import WEIGHTS_LINEAGE
from stillhouse.trace.plan import TracePlan

DETECTORS: Mapping[str, Detector] = {
    detector.name: detector
    for detector in (
        EXCHANGEABLE,
        RADIOACTIVITY,
        CANARIES,
        REPHRASINGS,
        STYLE,
        IDENTITY,
        WEIGHTS_LINEAGE,
        TRAINING_ORDER,
    )
}
"""By name."""


def unmet_requirements(plan: TracePlan, access: Access) -> dict[str, str | None]:
    """Every planned test, with why it cannot run and what would let it; None where it can."""
    return {test: DETECTORS[test].unmet_requirement(plan, access) for test in plan.tests.names}
