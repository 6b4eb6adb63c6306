"""What surrounds the training loop: device, seeds, interrupts, and running out of memory."""

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


def choose_device(wanted: str) -> torch.device:
    """The recipe's device; ``auto`` is the first CUDA device, or the processor where there is none.

    Raises:
        RecipeError: torch knows no such device, or this machine has none.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"train.device: {wanted!r} cannot be used: {str(error).splitlines()[0]}",
            hint="Use auto, cpu, cuda or cuda:1.",
        ) from error
    return device


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seeds every generator and allows only deterministic kernels (on the processor) inside the block.

    The generators and the setting are put back afterwards.
    """
    deterministic: Any = torch.utils.deterministic  # its setting is a property that type checkers miss
    before = generator_states()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_filling = deterministic.fill_uninitialized_memory
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        # Filling every new tensor guards against reading memory never written, at a cost to each one made.
        deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)
        deterministic.fill_uninitialized_memory = was_filling
        restore_generators(before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds ctrl-C back until the block is done (Python delivers it to the main thread alone)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def memory_errors(settings: Train) -> Iterator[None]:
    """Turns torch's ways of saying that memory ran out into :class:`OutOfMemoryError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, StillhouseError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"training does not fit in memory with train.micro_tokens {settings.micro_tokens}",
            hint="Lower train.micro_tokens (same result, less memory); the run goes on if no checkpoint is "
            "there yet. A lower train.max_length needs a new run (--restart, or another --out).",
        ) from error
