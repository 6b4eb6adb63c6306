"""A fixture that limits torch to one thread; imported by tests, because a second conftest hides the first."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads only slow down models of a few thousand weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
