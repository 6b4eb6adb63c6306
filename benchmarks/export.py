"""What exporting to GGUF costs: size, and how far the file is from the model it was made from.

    python benchmarks/export.py                     # embedded:smollm2, every type
    python benchmarks/export.py runs/mine/student --types q8_0 q4_k_m --out export.json

The model is saved as safetensors, exported with ``still export``'s own function, read back (de-quantised) and
held against the original in float32 on real text: the pages, licence and source of this project. KL is from
the original to the file, in nats a token, its interval over pieces of text; top-1 is how often both find the
same token likeliest.

embedded:smollm2 was 4 bits a weight (Q4_1) before it was read, so its weights lie on a grid that other types
may hit or miss. ``--noise`` moves each weight by normal noise of that share of its matrix's deviation,
which takes them off the grid, as training does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.export import ExportedFile, export_gguf
from stillhouse.export.quantise import MIXES
from stillhouse.models import Weights, load_weights
from stillhouse.stats import interval

ROOT = Path(__file__).parents[1]
PIECE = 256  # tokens
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One file."""

    type: str
    bytes: int
    seconds: float
    kl: float
    kl_low: float
    kl_high: float
    top1: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="embedded:smollm2")
    parser.add_argument("--types", nargs="*", default=list(MIXES), choices=MIXES)
    parser.add_argument("--pieces", type=int, default=40, help=f"of {PIECE} tokens")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    weights = load_weights(options.model)
    if options.noise:
        off_the_grid(weights, options.noise)
    ids_NT = pieces(weights, options.pieces)
    rows = []
    print(f"{options.model}, noise {options.noise}: {ids_NT.numel():,} tokens of real text")
    print(f"{'type':8} {'MB':>7} {'export s':>8}  {'KL nats/token':>28} {'top-1 %':>8}")
    with tempfile.TemporaryDirectory() as place:
        saved = save(weights, Path(place) / "model")
        for name in options.types:
            started = time.perf_counter()
            (done,) = export_gguf(saved, [name])
            row = measured(weights, ids_NT, done, time.perf_counter() - started)
            rows.append(row)
            span = f"{row.kl:.2g} [{row.kl_low:.2g}–{row.kl_high:.2g}]"
            print(
                f"{name:8} {row.bytes / 1e6:7.1f} {row.seconds:8.1f}  {span:>28} {100 * row.top1:8.2f}",
                flush=True,
            )
            done.path.unlink()
    if options.out:
        found = {"model": options.model, "noise": options.noise, "tokens": ids_NT.numel()}
        options.out.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def off_the_grid(weights: Weights, share: float) -> None:
    """Moves every matrix by noise of ``share`` of its standard deviation, in place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in weights.model.parameters():
            if parameter.dim() == 2:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)


def pieces(weights: Weights, count: int) -> Tensor:
    """Real text as ids [N, T]: every page, the licence and the sources, evenly drawn."""
    files = [ROOT / "LICENSE", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("src/stillhouse/*/*.py"))]
    ids = weights.tokenizer("\n\n".join(file.read_text("utf-8") for file in files))["input_ids"]
    whole = torch.tensor(ids)[: len(ids) // PIECE * PIECE].reshape(-1, PIECE)
    return whole[torch.linspace(0, len(whole) - 1, min(count, len(whole))).long()]


def save(weights: Weights, directory: Path) -> Path:
    """The model as a student's directory, in float32."""
    weights.model.save_pretrained(directory)
    weights.tokenizer.chat_template = weights.template.source
    weights.tokenizer.save_pretrained(directory)
    return directory


def measured(weights: Weights, ids_NT: Tensor, done: ExportedFile, seconds: float) -> Row:
    """The file read back and held against the original."""
    exported: Any = load_weights(str(done.path)).model
    kl, agree = [], []
    with torch.no_grad():
        for ids_T in ids_NT:
            p_TV, q_TV = (model(ids_T[None]).logits[0].log_softmax(-1) for model in (weights.model, exported))
            kl.append((p_TV.exp() * (p_TV - q_TV)).sum(-1).double().sum().item())
            agree.append((p_TV.argmax(-1) == q_TV.argmax(-1)).sum().item())
    tokens = [PIECE] * len(kl)
    mean = interval(kl, tokens, CONFIDENCE)
    return Row(
        done.type,
        done.bytes,
        seconds,
        mean.value,
        mean.low,
        mean.high,
        sum(agree) / sum(tokens),
    )


if __name__ == "__main__":
    main()
