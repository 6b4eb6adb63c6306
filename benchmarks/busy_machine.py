"""Tokens per second of training passes beside other work, by how the threads of torch wait for each other.

    python benchmarks/busy_machine.py            # about 8 minutes; nothing else may run
    python benchmarks/busy_machine.py --quick    # 2 minutes: bfloat16, three settings

Each measurement is a process of its own, since OpenMP reads its settings once: forward and backward of a
Llama with the shape of SmolLM2 and 4 layers (random weights) on rows of 256 tokens, for 6 seconds after a
warm-up, in bfloat16 and float32. Beside it run 0, 1, 2 or 8 processes that only count, at the lowest
priority (nice 19), or at an ordinary one with `--nice 0`. The order of the settings is shuffled within each
load.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOADS = (0, 1, 2, 8)
COUNT = "import os, sys; os.nice(int(sys.argv[1]))\nwhile True: pass"


def measure(dtype: str, seconds: float) -> dict[str, float]:
    """Tokens per second and milliseconds per pass, in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    rows = torch.randint(0, 49152, (1, 256))

    def one_pass() -> None:
        model(input_ids=rows, labels=rows).loss.backward()

    one_pass()
    start, passes = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        one_pass()
        passes += 1
    return {"tokens_s": passes * rows.numel() / (time.perf_counter() - start)}


def run(setting: str, dtype: str, seconds: float) -> float:
    """Tokens per second of a child process with ``setting``."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in unset} | SETTINGS[setting]
    child = subprocess.run(
        [sys.executable, __file__, "--child", dtype, "--seconds", str(seconds)],
        env=env,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(child.stdout)["tokens_s"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nice", type=int, default=19, help="priority of the processes beside it")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.seconds)))
        return
    shuffle = random.Random(0)
    settings = (
        list(SETTINGS) if not options.quick else ["torch's default", "OMP_WAIT_POLICY=PASSIVE", "one thread"]
    )
    for dtype in ("bfloat16",) if options.quick else ("bfloat16", "float32"):
        print(f"\n{dtype}, tokens/s beside n processes at nice {options.nice}")
        found: dict[str, list[float]] = {setting: [] for setting in settings}
        for load in LOADS:
            count = [sys.executable, "-c", COUNT, str(options.nice)]
            others = [subprocess.Popen(count) for _ in range(load)]
            try:
                for setting in shuffle.sample(settings, len(settings)):
                    found[setting].append(run(setting, dtype, options.seconds))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
        print(f"{'':24}" + "".join(f"{load:>8}" for load in LOADS))
        for setting, figures in found.items():
            print(f"{setting:24}" + "".join(f"{figure:8.0f}" for figure in figures))


if __name__ == "__main__":
    main()
