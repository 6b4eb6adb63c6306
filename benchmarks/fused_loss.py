"""The loss from hidden states: `fused_loss` compared with the usual implementations in PyTorch.

    python benchmarks/fused_loss.py                  # SmolLM2's head, 1,024 counted tokens, bfloat16
    python benchmarks/fused_loss.py --dtype float32 --tokens 512

All do the same work: forward KL between a student and a teacher, both given as hidden states, through two
heads of 49,152 ids, with the gradient by the student's hidden states (`frozen head`) or by those and its head
(`all weights`). Weights are random; the speed does not depend on their values.

- ours: `stillhouse.distill.loss.fused_loss`, 512-row chunks, closed-form gradient, tiles that stay in cache.
- whole logits: both [tokens, vocabulary] in float32, `F.kl_div`, backward.
- checkpointed: the same in chunks of 512 rows, each under `torch.utils.checkpoint`.

Seconds are medians over rounds in which the implementations alternate; process seconds (of all threads) vary
less if other work shares the machine. The peak is the increase of resident memory in a separate process that
runs one round. The error is that of the gradient by the hidden states against float64 on 64 rows,
‖difference‖ / ‖exact‖. A second table shows chunk sizes, a third every objective and target format.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stillhouse.console import console
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.teacher_rows import DenseRows, SampledRows, TeacherRows, TopKRows
from stillhouse.divergences import OBJECTIVES, ObjectiveName
from stillhouse.recipe import Objective

FORWARD_KL = Objective(kind="forward_kl")
KINDS: list[ObjectiveName] = [name for name, kind in OBJECTIVES.items() if kind.compares_tokens]
CHUNK = 512
Implementation = Callable[["Work"], Tensor]


class Work:
    """A batch: hidden states of both models, their heads, labels."""

    def __init__(
        self, tokens: int, vocab: int, hidden: int, dtype: torch.dtype, *, trains_head: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        hidden_ND = torch.randn(tokens, hidden, generator=generator)
        teacher_ND = hidden_ND + 0.3 * torch.randn(tokens, hidden, generator=generator)
        weight_VD = 0.1 * torch.randn(vocab, hidden, generator=generator)
        self.hidden_ND = hidden_ND.to(dtype).requires_grad_()
        self.teacher_ND = teacher_ND.to(dtype)
        self.weight_VD = weight_VD.to(dtype).requires_grad_(trains_head)
        self.teacher_VD = self.weight_VD.detach().clone()
        self.labels_N = torch.randint(vocab, (tokens,), generator=generator)
        self.trains_head = trains_head

    def rows(self) -> DenseRows:
        return DenseRows(self.teacher_ND, LMHead(self.teacher_VD))

    def step(self, implementation: Implementation) -> None:
        """Computes loss and gradients; the next step overwrites them."""
        self.hidden_ND.grad = self.weight_VD.grad = None
        implementation(self).backward()


def ours(work: Work) -> Tensor:
    return fused_loss(
        work.hidden_ND, LMHead(work.weight_VD), work.labels_N, work.rows(), FORWARD_KL, chunk=CHUNK
    )


def dense_kl(hidden_CD: Tensor, weight_VD: Tensor, teacher_CD: Tensor, teacher_VD: Tensor) -> Tensor:
    with torch.no_grad():
        logp_CV = F.linear(teacher_CD, teacher_VD).float().log_softmax(-1)
    logq_CV = F.linear(hidden_CD, weight_VD).float().log_softmax(-1)
    return F.kl_div(logq_CV, logp_CV, reduction="sum", log_target=True)


def whole_logits(work: Work) -> Tensor:
    return dense_kl(work.hidden_ND, work.weight_VD, work.teacher_ND, work.teacher_VD)


def checkpointed(work: Work) -> Tensor:
    parts = [
        checkpoint(dense_kl, hidden_CD, work.weight_VD, teacher_CD, work.teacher_VD, use_reentrant=False)
        for hidden_CD, teacher_CD in zip(
            work.hidden_ND.split(CHUNK), work.teacher_ND.split(CHUNK), strict=True
        )
    ]
    return torch.stack(parts).sum()  # pyright: ignore[reportArgumentType]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "ours": ours,
    "whole logits": whole_logits,
    "checkpointed": checkpointed,
}


def alternate(
    work: Work, implementations: dict[str, Implementation], rounds: int
) -> dict[str, dict[str, float]]:
    """Median wall and process seconds of each implementation, without the first round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in implementations}
    for _ in range(rounds + 1):
        for name, implementation in implementations.items():
            start = time.perf_counter(), time.process_time()
            work.step(implementation)
            seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {
        name: {
            "wall_s": statistics.median(wall for wall, _ in times[1:]),
            "process_s": statistics.median(process for _, process in times[1:]),
        }
        for name, times in seconds.items()
    }


def memory(field: str) -> int:
    """Resident memory of this process in bytes, from Linux: ``VmRSS`` is current, ``VmHWM`` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def peak_of(name: str, arguments: argparse.Namespace, *, trains_head: bool) -> float:
    """Peak megabytes of one round of an implementation, in a separate process."""
    sizes = [str(getattr(arguments, key)) for key in ("tokens", "vocab", "hidden", "dtype", "threads")]
    command = [sys.executable, __file__, "--peak", name, str(int(trains_head)), *sizes]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(
    name: str, trains_head: str, tokens: str, vocab: str, hidden: str, dtype: str, threads: str
) -> None:
    torch.set_num_threads(int(threads))
    options = {"trains_head": trains_head == "1"}
    work = Work(int(tokens), int(vocab), int(hidden), getattr(torch, dtype), **options)
    Work(2, 8, 4, torch.float32, **options).step(IMPLEMENTATIONS[name])  # loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    work.step(IMPLEMENTATIONS[name])
    print((memory("VmHWM") - before) / 1e6)


def gradient_errors(arguments: argparse.Namespace) -> dict[str, float]:
    """‖gradient − exact‖ / ‖exact‖ by the hidden states; exact is float64 on the same rounded inputs."""
    work = Work(64, arguments.vocab, arguments.hidden, getattr(torch, arguments.dtype), trains_head=False)
    leaf_ND = work.hidden_ND.detach().double().requires_grad_()
    wide = work.weight_VD.detach().double()
    dense = [work.teacher_ND.double(), wide]
    logq_NV, logp_NV = (leaf_ND @ wide.T).log_softmax(-1), (dense[0] @ wide.T).log_softmax(-1)
    F.kl_div(logq_NV, logp_NV, reduction="sum", log_target=True).backward()
    exact_ND = leaf_ND.grad
    assert exact_ND is not None
    errors = {}
    for name, implementation in IMPLEMENTATIONS.items():
        work.step(implementation)
        assert work.hidden_ND.grad is not None
        errors[name] = ((work.hidden_ND.grad.double() - exact_ND).norm() / exact_ND.norm()).item()
    return errors


def objective_implementations(work: Work) -> dict[str, Implementation]:
    """Every objective on dense rows, and forward KL on the other formats."""

    def fused(objective: Objective, rows: TeacherRows | None) -> Implementation:
        return lambda work: fused_loss(
            work.hidden_ND, LMHead(work.weight_VD), work.labels_N, rows, objective, chunk=CHUNK
        )

    tokens, vocab = len(work.labels_N), len(work.weight_VD)
    ids_NK = torch.randint(vocab // 64, (tokens, 64)) + torch.arange(0, 64) * (vocab // 64)
    topk = TopKRows(ids_NK, torch.zeros(tokens, 65).log_softmax(-1), vocab)
    sampled = SampledRows(ids_NK[:, :12], torch.ones(tokens, 12), vocab)
    dense = {kind: fused(Objective(kind=kind), work.rows()) for kind in KINDS}
    return dense | {
        "forward_kl, topk 64": fused(FORWARD_KL, topk),
        "forward_kl, sampled 12": fused(FORWARD_KL, sampled),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    errors = gradient_errors(arguments)
    results: dict[str, Any] = {}
    for label, trains_head in (("frozen head", False), ("all weights", True)):
        work = Work(
            arguments.tokens,
            arguments.vocab,
            arguments.hidden,
            getattr(torch, arguments.dtype),
            trains_head=trains_head,
        )
        measured = alternate(work, IMPLEMENTATIONS, arguments.rounds)
        del work
        for name in IMPLEMENTATIONS:
            measured[name] |= {
                "peak_mb": peak_of(name, arguments, trains_head=trains_head),
                "gradient_error": errors[name],
            }
        rows = [
            [
                name,
                f"{m['wall_s']:.2f}",
                f"{m['process_s']:.2f}",
                f"{m['process_s'] / measured['ours']['process_s']:.2f}",
                f"{m['peak_mb']:.0f}",
                f"{m['gradient_error']:.1e}",
            ]
            for name, m in measured.items()
        ]
        columns = ["", "wall s", "process s", "of ours", "peak MB", "error"]
        console.table(f"Forward KL, {label}, {arguments.dtype}", columns, rows)
        results[label] = measured
    return results


def print_seconds(title: str, measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    rows = [[name, f"{m['wall_s']:.2f}", f"{m['process_s']:.2f}"] for name, m in measured.items()]
    console.table(title, ["", "wall s", "process s"], rows)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fused_loss.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{key: getattr(arguments, key) for key in ("tokens", "vocab", "hidden", "dtype", "threads")},
        **compare(arguments),
    }
    work = Work(
        arguments.tokens,
        arguments.vocab,
        arguments.hidden,
        getattr(torch, arguments.dtype),
        trains_head=False,
    )
    chunks: dict[str, Implementation] = {
        str(chunk): lambda w, chunk=chunk: fused_loss(
            w.hidden_ND, LMHead(w.weight_VD), w.labels_N, w.rows(), FORWARD_KL, chunk=chunk
        )
        for chunk in (128, 256, 512, 1024)
    }
    results["chunks"] = print_seconds("Rows of a chunk", alternate(work, chunks, arguments.rounds))
    results["objectives"] = print_seconds(
        "Objectives, frozen head", alternate(work, objective_implementations(work), arguments.rounds)
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        main()
