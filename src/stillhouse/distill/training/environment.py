"""The environment of the training loop: device, seeds, interrupts and out-of-memory errors."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from stillhouse.distill.training.checkpoint import generator_states, restore_generators
from stillhouse.errors import OutOfMemoryError, RecipeError, StillhouseError, is_out_of_memory
from stillhouse.recipe import Train


def choose_device(name: str) -> torch.device:
    """The recipe's device; ``auto`` is the first CUDA device, or the CPU without one.

    Raises:
        RecipeError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"train.device: {name!r} cannot be used: {str(error).splitlines()[0]}",
            hint="Use auto, cpu, cuda or cuda:1.",
        ) from error
    return device


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds all random generators and (without a GPU) allows only deterministic kernels, inside the block.

    Generators and settings are restored afterwards.
    """
    deterministic: Any = torch.utils.deterministic  # its setting is a property that type checkers miss
    states = generator_states()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    filled_memory = deterministic.fill_uninitialized_memory
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        # Deterministic mode fills every new tensor, against reads of uninitialized memory; that costs time.
        deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        deterministic.fill_uninitialized_memory = filled_memory
        restore_generators(states)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C until the end of the block."""
    # Python delivers SIGINT to the main thread only, and lets no other thread set a handler.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def remember(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    handler = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def memory_errors(settings: Train) -> Iterator[None]:
    """Converts the out-of-memory errors of Python and torch to :class:`OutOfMemoryError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, StillhouseError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"training does not fit in memory with train.micro_tokens {settings.micro_tokens}",
            hint="Lower train.micro_tokens (same result, less memory); a run without checkpoints "
            "resumes with it. A lower train.max_length needs a new run (--restart, or another --out).",
        ) from error
