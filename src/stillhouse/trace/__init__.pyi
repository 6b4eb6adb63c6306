from .access import Access as Access
from .bundle.commitments import commit as commit
from .bundle.schema import Evidence as Evidence
from .delivered_log import read_log as read_log
from .detectors.base import Detector as Detector, Placebo as Placebo
from .detectors.canaries import (
    CanarySet as CanarySet,
    make_canaries as make_canaries,
    read_canaries as read_canaries,
    write_canaries as write_canaries,
)
from .detectors.case import Case as Case
from .detectors.registry import DETECTORS as DETECTORS, unmet_requirements as unmet_requirements
from .detectors.rephrasings import (
    TextVersions as TextVersions,
    draw_versions as draw_versions,
    read_versions as read_versions,
    write_versions as write_versions,
)
from .finding import Assumption as Assumption, Finding as Finding, Level as Level
from .judge import TeacherJudgement as TeacherJudgement, judge_all as judge_all
from .plan import (
    PlannedTests as PlannedTests,
    TeacherPlan as TeacherPlan,
    TracePlan as TracePlan,
    dump_plan as dump_plan,
    load_plan as load_plan,
    parse_plan as parse_plan,
    plan_for_texts as plan_for_texts,
    resolve_plan as resolve_plan,
)
from .rerun import rerun_bundle as rerun_bundle
from .resample import read_resamples as read_resamples
from .run import run_trace as run_trace
from .suspects.base import Suspect as Suspect
from .suspects.open import open_suspect as open_suspect
from .trace_model import trace as trace
from .verdict import Verdict as Verdict
from .verify import (
    BundleVerification as BundleVerification,
    require_verified as require_verified,
    verify_bundle as verify_bundle,
)
