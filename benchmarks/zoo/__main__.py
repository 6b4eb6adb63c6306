"""The zoo: models of known lineage, every test and the baselines on each.

    python -m zoo --quick            # in benchmarks/; trigram animals, about five minutes
    python -m zoo --root DEBIAN      # transformers of 0.7 to 1M parameters on Debian's dictionaries

Prints tables and writes zoo.json. What was trained is kept in --store under the hash of what it was made of.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from . import tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="trigram animals")
    only = parser.add_argument_group("not for --quick")
    only.add_argument("--root", type=Path, help="where the Debian packages were unpacked")
    only.add_argument("--store", type=Path, default=Path("zoo-animals"))
    only.add_argument("--arms", nargs="*", metavar="ARM[=SUSPECTS]", help="only these")
    only.add_argument("--each", type=int, default=1, help="suspects of an arm in a world")
    only.add_argument("--reads", type=int, default=10, help="times that a suspect reads what its arm adds")
    only.add_argument("--tokens", type=int, default=64, help="tokens of an output")
    only.add_argument("--processes", type=int, default=1, help="suspects that are looked at at a time")
    parser.add_argument("--worlds", type=int, default=2, help="logs, keys and sets of suspects drawn anew")
    parser.add_argument("--outputs", type=int, default=600, help="delivered outputs of a log")
    parser.add_argument("--resamples", type=int, default=4)
    parser.add_argument(
        "--redraws", type=int, default=10_000, help="labels and keys drawn anew, for the size"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("zoo.json"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    if arguments.quick:
        from .quick import visit
    else:
        from .full import visit
    found = visit(arguments)
    found["seconds"] = round(time.perf_counter() - started)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(tables.render(found))


if __name__ == "__main__":
    main()
