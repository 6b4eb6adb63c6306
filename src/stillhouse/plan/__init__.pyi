from .cost_formulas import Machine as Machine
from .preflight import preflight as preflight
from .run_plan import RunPlan as RunPlan, missing_keys as missing_keys, plan as plan
from .stage_costs import StagePlan as StagePlan
