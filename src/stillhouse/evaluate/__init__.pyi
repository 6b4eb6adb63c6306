from .compare import Candidate as Candidate, evaluate_models as evaluate_models
from .ensemble_reference import EnsembleReference as EnsembleReference
from .evaluate_model import evaluate as evaluate
from .measures import (
    Measures as Measures,
    ReferenceModel as ReferenceModel,
    TeacherReference as TeacherReference,
    measure as measure,
)
from .report import write_report as write_report
from .sampled_answers import (
    Judged as Judged,
    judge_answers as judge_answers,
    sample_and_score as sample_and_score,
)
from .study import study_page as study_page, study_results as study_results, study_table as study_table
from .table import difference_table as difference_table, results_table as results_table
from .verdict import judge_comparison as judge_comparison
