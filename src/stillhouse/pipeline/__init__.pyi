from .runner import run as run
from .study import run_study as run_study
