"""The public names of the trace package: all there, and loaded no earlier than they are used."""

import subprocess
import sys

from stillhouse import trace


def test_every_public_name_is_there():
    assert all(hasattr(trace, name) for name in trace.__all__)


def test_reading_a_plan_loads_no_detector():
    code = (
        "import sys; from stillhouse.trace import TracePlan, parse_plan; parse_plan('hard: 20'); "
        "print([name for name in ('numpy', 'pyarrow', 'torch') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
