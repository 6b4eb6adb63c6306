"""Readers of the weights in safetensors files, under the names of transformers' modules.

transformers stores some weights under other names than its modules have: a mixture of experts as one tensor
for each expert, and the text part of a model that also sees images under `language_model`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

Reader = Callable[[], "Tensor"]

_RENAMED = (
    (r"^model\.language_model\.", "model."),
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
    (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
    (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
)
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stored_weights(path: Path) -> dict[str, Reader]:
    """A function that reads each parameter from the safetensors files that transformers would load.

    Raises:
        ModelNotFoundError: a file is missing.
        ModelError: a file is damaged.
    """
    return _with_joined_experts({_module_name(key): reader for key, reader in _readers(path).items()})


def _readers(path: Path) -> dict[str, Reader]:
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    files = [path / "model.safetensors"]
    if index.is_file():  # require_safetensors has checked its names
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        files = [path / name for name in sorted(set(names))]
    readers: dict[str, Reader] = {}
    for file in files:
        if not file.is_file():
            raise ModelNotFoundError(f"{path} lacks its weights {file.name}", hint="Copy the model again.")
        try:
            opened = safe_open(file, "pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", hint="Copy the model again.") from error
        readers |= {key: _reader(opened, key) for key in opened.keys()}  # noqa: SIM118  no iteration
    return readers


def _reader(opened: Any, key: str) -> Reader:
    return lambda: opened.get_tensor(key)


def _module_name(key: str) -> str:
    for stored, name in _RENAMED:
        key = re.sub(stored, name, key)
    return key


def _with_joined_experts(readers: dict[str, Reader]) -> dict[str, Reader]:
    """The weights of a layer's experts as transformers' modules hold them: one tensor for all of them."""
    joined: dict[str, Reader] = {}
    experts: dict[str, dict[int, dict[str, Reader]]] = {}
    for key, reader in readers.items():
        if match := _EXPERT.fullmatch(key):
            experts.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = reader
        else:
            joined[key] = reader
    for module, by_number in experts.items():
        ordered = [by_number[number] for number in sorted(by_number)]
        if any(expert.keys() != {"gate", "up", "down"} for expert in ordered):
            continue  # reported as missing
        joined[f"{module}.gate_up_proj"] = _joined(ordered, ("gate", "up"))
        joined[f"{module}.down_proj"] = _joined(ordered, ("down",))
    return joined


def _joined(experts: list[dict[str, Reader]], parts: tuple[str, ...]) -> Reader:
    def read() -> Tensor:
        import torch

        return torch.stack([torch.cat([expert[part]() for part in parts]) for expert in experts])

    return read
