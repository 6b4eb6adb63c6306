"""benchmarks/soak.py for some seconds: no request is lost, and the counts add up."""

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
    # Too short to measure the growth of memory.
    options = ["--minutes", "0.34", "--idle", "1", "--growth", "inf", "--out", out]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options, f"tiny={tiny_teacher}", "smollm2=embedded:smollm2"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["faults"] == []
    assert report["sent"] == report["answered"] + report["told"] + report["given up"] > 50
    assert sum(sum(counts.values()) for counts in report["by_kind"].values()) == report["sent"]
    assert len(report["by_kind"]) >= 8
    # Whether the last models are unloaded depends on how long the end takes: they idle for a second.
    assert report["models_loaded"] >= max(2, report["models_unloaded"])
