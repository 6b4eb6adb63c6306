from .costs import Machine as Machine
from .preflight import preflight as preflight
from .run_plan import Plan as Plan, plan as plan
from .stages import StagePlan as StagePlan
