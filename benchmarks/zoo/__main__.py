"""The zoo: models of known lineage, with every test and the baselines on each.

    python -m zoo --quick            # in benchmarks/; trigram models, about five minutes
    python -m zoo --root DEBIAN      # transformers of 0.7 to 1M parameters on Debian's dictionaries

Prints tables and writes zoo.json. Trained models are kept in --store, named by a hash of their origin.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from . import tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="trigram models")
    full = parser.add_argument_group("not for --quick")
    full.add_argument("--root", type=Path, help="directory of the unpacked Debian packages")
    full.add_argument("--store", type=Path, default=Path("zoo-animals"))
    full.add_argument("--arms", nargs="*", metavar="ARM[=SUSPECTS]", help="only these")
    full.add_argument("--each", type=int, default=1, help="suspects of an arm in a world")
    full.add_argument("--reads", type=int, default=10, help="epochs of a suspect on what its arm adds")
    full.add_argument("--tokens", type=int, default=64, help="tokens of an output")
    full.add_argument("--processes", type=int, default=1, help="suspects that are evaluated at a time")
    parser.add_argument("--worlds", type=int, default=2, help="independent logs, keys and sets of suspects")
    parser.add_argument("--outputs", type=int, default=600, help="delivered outputs of a log")
    parser.add_argument("--resamples", type=int, default=4)
    parser.add_argument("--redraws", type=int, default=10_000, help="redraws of labels and keys (size)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("zoo.json"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.quick:
        from .quick import run
    else:
        from .full import run
    results = run(arguments)
    results["seconds"] = round(time.perf_counter() - started)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tables.render(results))


if __name__ == "__main__":
    main()
