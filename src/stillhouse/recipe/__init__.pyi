from .load import dump_recipe as dump_recipe, load_recipe as load_recipe, parse_recipe as parse_recipe
from .on_policy import OnPolicy as OnPolicy, Policy as Policy
from .sections import (
    Collect as Collect,
    Evaluate as Evaluate,
    Filter as Filter,
    Lora as Lora,
    Objective as Objective,
    Prompts as Prompts,
    Purpose as Purpose,
    Recipe as Recipe,
    Student as Student,
    Teacher as Teacher,
    Train as Train,
)
from .study import Study as Study, is_study as is_study, load_study as load_study
from .teachers import (
    all_teachers as all_teachers,
    teacher_number as teacher_number,
    teacher_shares as teacher_shares,
)
from .verifiers import Select as Select, Verifier as Verifier
