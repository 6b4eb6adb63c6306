"""The soak of benchmarks/soak.py, for seconds: nothing is lost, and the sums are right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.nightly
def test_twenty_seconds_of_mixed_load_lose_nothing(tiny_teacher, tmp_path):
    out = tmp_path / "soak.json"
    # So short a time says nothing of growth.
    options = ["--minutes", "0.34", "--idle", "1", "--growth", "inf", "--out", out]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options, f"tiny={tiny_teacher}", "smollm2=embedded:smollm2"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["faults"] == []
    assert found["sent"] == found["answered"] + found["told"] + found["given up"] > 50
    assert sum(sum(counts.values()) for counts in found["by_kind"].values()) == found["sent"]
    assert len(found["by_kind"]) >= 8
    # Whether the last ones are still there depends on how long the end takes, against an idle second.
    assert found["models_loaded"] >= max(2, found["models_unloaded"])
