"""Descent: fine-tunes of a teacher and models that had only its outputs, all with the teacher's tokenizer.

The zoo's suspects have other tokenizers, so the test of weights cannot run on them. These four share the
teacher's: its second version, the same with its hidden units in another order, a model trained on the whole
log, and a model trained on the web. The last two have nothing from the weights, whatever they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM

from stillhouse.console import console
from stillhouse.models import load_weights
from stillhouse.trace.detectors import training_order, weights_lineage
from stillhouse.trace.suspects.open import open_suspect

from .trained_models import TrainedModel, reading_order, train_model

ORDERED = 150  # training texts of the teacher, in the order in which it read them
TOKENS = 1024  # for matching units


def examine(
    store: Path,
    teacher: TrainedModel,
    second: TrainedModel,
    reference: TrainedModel,
    read: Sequence[str],
    *,
    tokens: int,
    log: Sequence[str],
    web: Sequence[str],
    redraws: int,
) -> list[dict[str, Any]]:
    """Runs the tests of weights and of training order on each of the four.

    Args:
        read: the teacher's training texts, of which it read ``tokens`` with seed 1.
        reference: a model that descends from none of them.
        redraws: number of redrawn orders and signs of the teacher's units, and orders of its texts.
    """
    texts = _last_read(teacher, read, tokens)
    models = {
        "the teacher's second version": (second.path, True),
        "the same, its units in another order": (_reordered(store, second), True),
        "trained on the whole log": (
            train_model(store, teacher.kind, [*web, *log], tokens=tokens, seed=11, like=teacher).path,
            False,
        ),
        "trained on the web": (
            train_model(store, teacher.kind, web, tokens=tokens, seed=12, like=teacher).path,
            False,
        ),
    }
    ours, other = load_weights(str(teacher.path)), open_suspect(str(reference.path))
    results = []
    with console.progress("descent", len(models)) as progress:
        for name, (path, descends) in models.items():
            matched = weights_lineage.observe(load_weights(str(path)), ours, web, tokens=TOKENS)
            ordered = training_order.observe(open_suspect(str(path)), texts, reference=other)
            of_weights = weights_lineage.judge(matched, {})
            of_order = training_order.judge(ordered, {"seed": 0})
            result: dict[str, Any] = {
                "model": name,
                "descends": descends,
                "weights_log10_p": of_weights.effect["log10_p"],
                "units_in_place": of_weights.effect["units_in_place"],
                "signs_kept": of_weights.effect["signs_kept"],
                "order_log10_p": of_order.effect["log10_p"],
                "tau": of_order.effect["tau"],
            }
            if not descends:
                result["null"] = {
                    "weights": redrawn_units(matched, redraws, seed=1),
                    "order": redrawn_orders(ordered, redraws, seed=2),
                }
            results.append(result)
            progress.advance()
    return results


def redrawn_units(matched: pa.Table, redraws: int, seed: int) -> list[float]:
    """p-values [R] of the test of weights with redrawn orders and signs of the teacher's units."""
    generator = np.random.default_rng(seed)
    index = matched["teacher_index"].to_numpy().copy()
    similarity = matched["similarity"].to_numpy()
    layer, suspect = matched["teacher_layer"].to_numpy(), matched["suspect_index"].to_numpy()
    groups = [np.flatnonzero(layer == one) for one in np.unique(layer)]
    ps = []
    for _ in range(redraws):
        for rows in groups:
            index[rows] = generator.permutation(suspect[rows])
        signs = generator.choice(np.float32([-1, 1]), len(similarity))
        columns = {"teacher_index": pa.array(index), "similarity": pa.array(np.abs(similarity) * signs)}
        table = matched
        for name, column in columns.items():
            position = matched.schema.get_field_index(name)
            table = table.set_column(position, matched.schema.field(name), column)
        ps.append(weights_lineage.judge(table, {}).p_value)
    return ps


def redrawn_orders(ordered: pa.Table, redraws: int, seed: int) -> list[float]:
    """p-values [R] of the test of training order with redrawn orders of the texts."""
    generator, position = np.random.default_rng(seed), ordered.schema.get_field_index("place")
    field, ps = ordered.schema.field("place"), []
    for draw in range(redraws):
        order = pa.array(generator.permutation(len(ordered)), field.type)
        ps.append(training_order.judge(ordered.set_column(position, field, order), {"seed": draw}).p_value)
    return ps


def _last_read(teacher: TrainedModel, read: Sequence[str], tokens: int) -> list[str]:
    """A sample of the texts, in the order in which the teacher last read them."""
    lengths = [len(ids) + 1 for ids in teacher.tokenizer(list(read), add_special_tokens=False)["input_ids"]]
    order = reading_order(lengths, tokens, seed=1)
    whole = np.cumsum([lengths[index] for index in order]) <= tokens
    last_turn = {index: turn for turn, index in enumerate(order) if whole[turn]}
    indices = sorted(last_turn, key=last_turn.__getitem__)
    return [read[indices[turn]] for turn in np.linspace(0, len(indices) - 1, ORDERED).astype(int)]


def _reordered(store: Path, source: TrainedModel) -> Path:
    """The same function with the units of every layer in another order."""
    path = store / f"{source.path.name}-reordered"
    if not path.exists():
        model: Any = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
        generator = torch.Generator().manual_seed(7)
        for layer in model.model.layers:
            order = torch.randperm(layer.mlp.up_proj.out_features, generator=generator)
            for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
                linear = getattr(layer.mlp, name)
                linear.weight.data = linear.weight.data.index_select(dim, order)
        model.save_pretrained(path)
        source.tokenizer.save_pretrained(path)
    return path
