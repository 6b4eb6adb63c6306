from .costs import Machine as Machine
from .preflight import preflight as preflight
from .run_plan import RunPlan as RunPlan, plan as plan
from .stages import StagePlan as StagePlan
