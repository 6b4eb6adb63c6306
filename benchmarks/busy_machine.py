"""Tokens per second of training passes beside other work, by how the threads of torch wait for each other.

    python benchmarks/busy_machine.py            # about 6 minutes; nothing else may run

Each measurement is a process of its own, since OpenMP reads its settings once: forward and backward of a
Llama with the shape of SmolLM2 and 4 layers (random weights) on rows of 256 tokens, for 6 seconds after a
warm-up, in bfloat16 and float32. Beside it run 0, 1, 2 or 8 processes that only count, at the lowest
priority (nice 19). The order of the settings is shuffled within each load.
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
COUNT = "import os; os.nice(19)\nwhile True: pass"


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
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.seconds)))
        return
    shuffle = random.Random(0)
    for dtype in ("bfloat16", "float32"):
        print(f"\n{dtype}, tokens/s beside n processes at nice 19")
        found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        for load in LOADS:
            others = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(load)]
            try:
                for setting in shuffle.sample(list(SETTINGS), len(SETTINGS)):
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
