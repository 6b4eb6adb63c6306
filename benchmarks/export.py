"""Measures GGUF exports: size, and KL divergence from the model to the file.

    python benchmarks/export.py                     # embedded:smollm2, every type
    python benchmarks/export.py runs/mine/student --types q8_0 q4_k_m --out export.json

The model is saved as safetensors, exported with the function behind ``still export``, read back
(de-quantised) and compared with the original in float32 on real text: the pages, licence and source of this
project. KL is from the original to the file, in nats per token, with an interval over pieces of text; top-1
is how often both have the same likeliest token.

embedded:smollm2 has 4 bits per weight (Q4_1), so its weights lie on a grid that other types can hit or miss.
``--noise`` adds normal noise with that share of the standard deviation of each weight's matrix, which takes
the weights off the grid, as training does.
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
from stillhouse.export.quantise import QUANTISATIONS
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
    parser.add_argument("--types", nargs="*", default=list(QUANTISATIONS), choices=QUANTISATIONS)
    parser.add_argument("--pieces", type=int, default=40, help=f"of {PIECE} tokens")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    weights = load_weights(options.model)
    if options.noise:
        add_noise(weights, options.noise)
    ids_NT = pieces(weights, options.pieces)
    rows = []
    print(f"{options.model}, noise {options.noise}: {ids_NT.numel():,} tokens of real text")
    print(f"{'type':8} {'MB':>7} {'export s':>8}  {'KL nats/token':>28} {'top-1 %':>8}")
    with tempfile.TemporaryDirectory() as directory:
        saved = save(weights, Path(directory) / "model")
        for name in options.types:
            started = time.perf_counter()
            (file,) = export_gguf(saved, [name])
            row = measure(weights, ids_NT, file, time.perf_counter() - started)
            rows.append(row)
            span = f"{row.kl:.2g} [{row.kl_low:.2g}–{row.kl_high:.2g}]"
            print(
                f"{name:8} {row.bytes / 1e6:7.1f} {row.seconds:8.1f}  {span:>28} {100 * row.top1:8.2f}",
                flush=True,
            )
            file.path.unlink()
    if options.out:
        settings = {"model": options.model, "noise": options.noise, "tokens": ids_NT.numel()}
        options.out.write_text(
            json.dumps({**settings, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


def add_noise(weights: Weights, share: float) -> None:
    """Adds noise of ``share`` of its standard deviation to every matrix, in place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in weights.model.parameters():
            if parameter.dim() == 2:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)


def pieces(weights: Weights, count: int) -> Tensor:
    """Real text as ids [N, T], at even distances from the pages, the licence and the sources."""
    files = [ROOT / "LICENSE", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("src/stillhouse/**/*.py"))]
    ids = weights.tokenizer("\n\n".join(file.read_text("utf-8") for file in files))["input_ids"]
    all_NT = torch.tensor(ids)[: len(ids) // PIECE * PIECE].reshape(-1, PIECE)
    return all_NT[torch.linspace(0, len(all_NT) - 1, min(count, len(all_NT))).long()]


def save(weights: Weights, directory: Path) -> Path:
    """The model as a student's directory, in float32."""
    weights.model.save_pretrained(directory)
    weights.tokenizer.chat_template = weights.template.source
    weights.tokenizer.save_pretrained(directory)
    return directory


def measure(weights: Weights, ids_NT: Tensor, file: ExportedFile, seconds: float) -> Row:
    """Reads the file back and compares it with the original."""
    exported: Any = load_weights(str(file.path)).model
    kl, agree = [], []
    with torch.no_grad():
        for ids_T in ids_NT:
            p_TV, q_TV = (model(ids_T[None]).logits[0].log_softmax(-1) for model in (weights.model, exported))
            kl.append((p_TV.exp() * (p_TV - q_TV)).sum(-1).double().sum().item())
            agree.append((p_TV.argmax(-1) == q_TV.argmax(-1)).sum().item())
    tokens = [PIECE] * len(kl)
    mean = interval(kl, tokens, CONFIDENCE)
    return Row(
        file.type,
        file.bytes,
        seconds,
        mean.value,
        mean.low,
        mean.high,
        sum(agree) / sum(tokens),
    )


if __name__ == "__main__":
    main()
