"""Threads of torch sleep while they wait, which OpenMP itself reports when it is loaded."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, importlib.util, pathlib
from stillhouse.cli import main
main(["terms", "mit", "--json"])
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
ctypes.CDLL(next(torch.glob("lib/libgomp*")))  # what torch loads, without the seconds that torch takes
"""
LIBRARY = Path(find_spec("torch").origin).parent.glob("lib/libgomp*")
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.skipif(not list(LIBRARY), reason="this build of torch has another OpenMP")
@pytest.mark.parametrize(
    ("chosen", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "5"}, "5")],
)
def test_the_command_sets_how_threads_wait_unless_the_user_did(chosen, policy):
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, **chosen, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    variable = next(iter(chosen), "OMP_WAIT_POLICY")
    assert any(variable in line and f"'{policy}'" in line for line in shown.splitlines()), shown
