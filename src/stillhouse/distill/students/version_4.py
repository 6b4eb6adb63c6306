"""Configuration keys of transformers 4, beside those that transformers 5 writes.

transformers 4 and programs of its time (vLLM, mlx-lm, conversion scripts) ignore `rope_parameters` without a
word and rotate by their default, and do not know the tokenizer class `TokenizersBackend`. transformers 5
reads the old keys too: what it reads with them is compared with what it reads without, and keys that change
anything are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillhouse.models import quiet_transformers

_MOE_WITH_NEW_NAME = ("qwen3_moe", "qwen3_vl_moe_text")
"""Architectures (`model_type`) whose `num_experts` transformers 5 saves as `num_local_experts`."""


def add_version_4_keys(directory: Path) -> None:
    """Adds the keys to config.json and tokenizer_config.json in ``directory``."""
    _extend_config(directory / "config.json")
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    _write(path, settings)


def _extend_config(path: Path) -> None:
    text = path.read_text("utf-8")
    settings = json.loads(text)
    keys = _rotations(settings)
    if settings["model_type"] in _MOE_WITH_NEW_NAME and "num_local_experts" in settings:
        keys["num_experts"] = settings["num_local_experts"]
    if not keys:
        return
    before = _as_version_5_reads(path)
    _write(path, {**settings, **keys})
    if _as_version_5_reads(path) != before:
        path.write_text(text, "utf-8")


def _as_version_5_reads(path: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    with quiet_transformers():
        entries = AutoConfig.from_pretrained(path.parent).to_dict()
    # `type` is an old name of `rope_type`, which is there as well.
    (entries.get("rope_parameters") or {}).pop("type", None)
    return entries


def _rotations(settings: dict[str, Any]) -> dict[str, Any]:
    """The old keys for `rope_parameters`; none where there is no old form."""
    rotation = settings.get("rope_parameters") or {}
    if "full_attention" in rotation and "sliding_attention" in rotation:  # Gemma 3
        local = rotation["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            return {}
        return {**_flat(rotation["full_attention"]), "rope_local_base_freq": local["rope_theta"]}
    return _flat(rotation) if "rope_theta" in rotation else {}


def _flat(rotation: dict[str, Any]) -> dict[str, Any]:
    keys = {name: rotation[name] for name in ("rope_theta", "partial_rotary_factor") if name in rotation}
    scaling = {name: value for name, value in rotation.items() if name not in keys}
    if keys.get("partial_rotary_factor") == 1:
        del keys["partial_rotary_factor"]
    match scaling.get("rope_type", "default"):
        case "default":
            return keys
        case "longrope":  # Phi-3's configuration takes these three and no other
            factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
            return {**keys, "rope_scaling": {"type": "longrope", **factors}}
    return {**keys, "rope_scaling": scaling}


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
