"""Weights lineage: tests whether the suspect is a fine-tune of the teacher's own weights.

After Zhu et al. 2025, arXiv:2502.12292. Before training, nothing distinguishes one hidden unit of a
transformer's MLP from another: their initial weights have the same distribution, and training treats them
alike. So the *order* of the teacher's units is a random shuffle to any model from another initialisation,
however similar the two models' data are. The same holds for the order of the channels of the residual stream,
and for the *sign* of each unit: flipping its row in `up_proj` and its column in `down_proj` leaves the
function of the model unchanged. Three tests follow, independent under the null and each with an exact
distribution:

- units: match the units of each layer by their behaviour (assignment on the absolute Spearman correlation of
  the outputs of `up_proj` on the same text), and count the units i that are matched with unit i.
- signs: count the matched pairs with the same sign. This does not depend on the order, and stays exact and
  sensitive after someone permutes the units, rotates the residual stream, or prunes layers or units.
- channels: match the columns of the embedding, and count the channels that are matched with themselves.

The null needs the symmetry of only *one* of the two models: the teacher, whose training is known. It also
holds exactly for a suspect that was trained on the teacher's outputs, because no output depends on the order
or the signs.

The test does not detect a suspect whose owner permuted units *and* channels *and* flipped signs at random.
The similarity of matched units, which is reported without a p-value, would still reveal it to a reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from stillhouse.models import load_weights, tokenizer_difference
from stillhouse.stats import e_from_p, fisher_log_p, fixed_points_log_p, heads_log_p, p_from_log
from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.transcript import empty_reason, empty_transcript
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from stillhouse.models import Weights

NAME = "weights"
LEVEL: Level = "weights"

SCHEMA = pa.schema(
    [
        ("family", pa.string()),  # units or channels
        ("teacher_layer", pa.int32()),  # −1 for channels
        ("suspect_layer", pa.int32()),
        ("teacher_width", pa.int32()),  # number of units or channels; the narrower side is matched whole
        ("suspect_width", pa.int32()),
        ("teacher_index", pa.int32()),
        ("suspect_index", pa.int32()),
        ("similarity", pa.float32()),  # of the matched pair, signed
    ]
)

NULL = (
    "The suspect's weights do not depend on the order and the signs of the teacher's hidden units. The "
    "teacher's own initialisation makes that distribution: units and channels were drawn alike and trained "
    "alike, so every order and every sign of them is as likely as the one that came out."
)
RIVALS = (
    "both were fine-tuned from a third model's weights, or the teacher from the suspect's",
    "the suspect was trained on the teacher's hidden states, which an API does not give out",
)


def observe(suspect: Weights, teacher: Weights, texts: Sequence[str], *, tokens: int = 1024) -> pa.Table:
    """Matches every MLP unit and every channel of the residual stream between two models.

    Holds ``tokens`` activations of every unit of both models in memory (0.4 GB for 30 layers of 1,536 units).

    Args:
        texts: any texts; both models read their first ``tokens`` tokens, at most 256 of each text.
        tokens: more tokens make the matching more reliable (the noise of a correlation is 1/√tokens).

    Returns:
        One row per matched pair, as in `SCHEMA`; no rows and a reason if the models cannot be compared.
    """
    if difference := tokenizer_difference(teacher.tokenizer, suspect.tokenizer):
        return empty_transcript(
            SCHEMA,
            f"The tokenizers differ ({difference}), so that activations and embeddings of the two models "
            "have no tokens to be matched by. This test is for a suspect that kept the teacher's tokenizer.",
        )
    for role, model in (("teacher", teacher.model), ("suspect", suspect.model)):
        if not _up_projections(model):
            return empty_transcript(
                SCHEMA,
                f"The {role} ({model.config.model_type}) has no layers with mlp.gate_proj and mlp.up_proj, "
                "and the symmetry of signs is that of gated MLPs as in llama, mistral, qwen or gemma.",
            )
    sequences = _encode_prefix(teacher, texts, tokens)
    if sum(map(len, sequences)) < 64:
        return empty_transcript(
            SCHEMA, "The texts have fewer than 64 tokens: too little to tell units apart by."
        )
    ours, theirs = _activations(teacher.model, sequences), _activations(suspect.model, sequences)
    tables = []
    for teacher_layer, suspect_layer in _layer_pairs(ours, theirs):
        matched = _match(ours[teacher_layer].T @ theirs[suspect_layer])
        tables.append(_rows("units", teacher_layer, suspect_layer, *matched))
    tables.append(_rows("channels", -1, -1, *_match(_channel_similarity(teacher.model, suspect.model))))
    return pa.concat_tables(tables)


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Counts units and channels that kept their index and units that kept their sign; takes no parameters."""
    reason = empty_reason(transcript)
    if reason is None and transcript.num_rows == 0:
        reason = "The transcript holds no matched pair."
    if reason is not None:
        return Finding(NAME, LEVEL, NULL, 0, parameters=dict(parameters), reason=reason)

    layers, channels = _matched(transcript)
    in_place, in_channels = [layer.in_place() for layer in layers], channels.in_place()
    similarity_U = np.concatenate([layer.similarity for layer in layers])
    same, decided = int((similarity_U > 0).sum()), int((similarity_U != 0).sum())

    signs_log_p = heads_log_p(same, decided)
    order_log_ps = [fixed_points_log_p(hits, n) for hits, n in [*in_place, in_channels] if n]
    log_p = fisher_log_p([*order_log_ps, signs_log_p])
    return Finding(
        NAME,
        LEVEL,
        NULL,
        n=transcript.num_rows,
        statistic=(
            "−Σ log p over the exact p-values of each layer's order, of the channels' order and of the signs "
            "(Fisher); under the null at most Gamma distributed, with as many degrees of shape as p-values"
        ),
        value=-math.fsum([*order_log_ps, signs_log_p]),
        p_value=p_from_log(log_p),
        e_value=e_from_p(p_from_log(log_p)),
        effect={
            "units_in_place": _share(in_place),
            "channels_in_place": _share([in_channels]),
            "signs_kept": same / decided if decided else None,
            "median_similarity": float(np.median(np.abs(similarity_U))),
            "log10_p": log_p / math.log(10),
            "log10_p_signs": signs_log_p / math.log(10),
        },
        assumptions=_assumptions(
            same_widths=all(n for _, n in [*in_place, in_channels]), signless=len(similarity_U) - decided
        ),
        rivals=RIVALS,
        parameters=dict(parameters),
        series={
            "units_in_place": [hits / n if n else 0.0 for hits, n in in_place],
            "signs_kept": [float((layer.similarity > 0).mean()) for layer in layers],
        },
    )


def _assumptions(*, same_widths: bool, signless: int) -> tuple[Assumption, ...]:
    return (
        Assumption(
            "The teacher's units and channels were initialised alike (independently, with symmetric signs) "
            "and trained by a rule that treats them alike, as SGD, Adam and Muon do.",
            None,
            "Known to whoever trained the teacher. Sorting units afterwards, as pruning by importance may, "
            "would break the order's part of it and not the signs'.",
        ),
        Assumption(
            "Whatever the suspect's maker had of the teacher depended on its outputs only, unless it was the "
            "weights.",
            None,
            "True of an API and of text.",
        ),
        Assumption(
            "Both models have the same widths, so that order can be compared.",
            same_widths,
            "" if same_widths else "Where they differ, only the signs were tested.",
        ),
        Assumption(
            "A matched pair has a sign.", signless == 0, f"{signless:,} pairs without one were left out."
        ),
    )


@dataclass(frozen=True)
class _Matching:
    """The matched pairs of one layer's units, or of the channels."""

    teacher_index: np.ndarray
    suspect_index: np.ndarray
    similarity: np.ndarray
    same_width: bool

    def in_place(self) -> tuple[int, int]:
        """How many kept their index, and of how many; (0, 0) if the widths differ."""
        if not self.same_width:
            return 0, 0
        return int((self.teacher_index == self.suspect_index).sum()), len(self.teacher_index)


def _matched(transcript: pa.Table) -> tuple[list[_Matching], _Matching]:
    """The matchings of the units of each layer, and of the channels."""
    columns = {name: transcript[name].to_numpy() for name in SCHEMA.names if name != "family"}

    def matching(rows: np.ndarray) -> _Matching:
        return _Matching(
            columns["teacher_index"][rows],
            columns["suspect_index"][rows],
            columns["similarity"][rows],
            bool((columns["teacher_width"][rows] == columns["suspect_width"][rows]).all()),
        )

    layer = columns["teacher_layer"]
    return [matching(layer == i) for i in np.unique(layer[layer >= 0])], matching(layer < 0)


def _share(counts: Sequence[tuple[int, int]]) -> float | None:
    total = sum(n for _, n in counts)
    return sum(hits for hits, _ in counts) / total if total else None


def _rows(
    family: str,
    teacher_layer: int,
    suspect_layer: int,
    teacher_I: np.ndarray,
    suspect_I: np.ndarray,
    similarity_I: np.ndarray,
    shape: tuple[int, int],
) -> pa.Table:
    n = len(teacher_I)
    columns = [
        [family] * n,
        [teacher_layer] * n,
        [suspect_layer] * n,
        [shape[0]] * n,
        [shape[1]] * n,
        teacher_I,
        suspect_I,
        similarity_I,
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _match(similarity_TS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """The one-to-one pairing with the greatest sum of |similarity|, independent of signs and order."""
    # The solver breaks ties (between dead units) by position, which would favour unit i with unit i.
    shuffle = np.random.default_rng(0).permutation(len(similarity_TS))
    rows, suspect_I = linear_sum_assignment(np.abs(similarity_TS[shuffle]), maximize=True)
    teacher_I = shuffle[rows]
    return teacher_I, suspect_I, similarity_TS[teacher_I, suspect_I], similarity_TS.shape


def _layer_pairs(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of layers: by index, or by greatest similarity, one to one, if the depths differ."""
    if len(ours) == len(theirs):
        return [(layer, layer) for layer in range(len(ours))]
    similarity = np.array([[np.abs(a.T @ b).max(axis=0).mean() for b in theirs] for a in ours])
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _up_projections(model: PreTrainedModel) -> list[nn.Module]:
    modules = dict(model.named_modules())
    ups = [name for name in modules if name.endswith("mlp.up_proj")]
    gated = all(name.removesuffix("up_proj") + "gate_proj" in modules for name in ups)
    return [modules[name] for name in ups] if gated else []


def _encode_prefix(teacher: Weights, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """Token ids of the first texts: at most 256 of each and ``tokens`` in total."""
    sequences: list[list[int]] = []
    left = tokens
    for text in texts:
        ids = teacher.tokenizer.encode(text, add_special_tokens=False)[: min(left, 256)]
        if len(ids) > 1:
            sequences.append(ids)
            left -= len(ids)
        if left <= 1:
            break
    return sequences


def _activations(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Activations of each unit on each token as unit vectors of centred ranks: one array [N, I] per layer."""
    import torch

    layers = _up_projections(model)
    outputs: list[list[np.ndarray]] = [[] for _ in layers]

    def record_to(kept: list[np.ndarray]) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: kept.append(output[0].float().cpu().numpy())

    handles = [
        layer.register_forward_hook(record_to(kept)) for layer, kept in zip(layers, outputs, strict=True)
    ]
    try:
        with torch.no_grad():
            for ids in sequences:
                decoder = getattr(model, model.base_model_prefix)
                decoder(torch.tensor([list(ids)], device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    # Ranks, because models have activations a thousand times larger on a few tokens, which would dominate.
    return [_unit_vectors(np.asarray(rankdata(np.concatenate(kept), axis=0))) for kept in outputs]


def _channel_similarity(teacher: PreTrainedModel, suspect: PreTrainedModel) -> np.ndarray:
    """Correlations [D, D'] of the embeddings' columns over their common tokens."""
    ours, theirs = (
        cast("nn.Embedding", model.get_input_embeddings()).weight.detach().float().cpu().numpy()
        for model in (teacher, suspect)
    )
    rows = min(len(ours), len(theirs))
    return _unit_vectors(ours[:rows]).T @ _unit_vectors(theirs[:rows])


def _unit_vectors(values_NI: np.ndarray) -> np.ndarray:
    centred = (values_NI - values_NI.mean(axis=0)).astype(np.float32)
    norms = np.linalg.norm(centred, axis=0)
    return centred / np.where(norms > 0, norms, 1)


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    if "weights" not in access.teacher:
        return "needs the teacher's weights on this machine."
    return access.suspect_lacks("weights")


def _observe(case: Case) -> pa.Table:
    assert case.teacher.model is not None
    texts = [row.output for row in case.log.rows]
    return observe(load_weights(str(case.plan.suspect)), load_weights(case.teacher.model), texts)


WEIGHTS_LINEAGE = Detector(
    name=NAME,
    level=LEVEL,
    title="Whether it is a fine-tune of the teacher's weights",
    explanation=(
        "The numbers inside the two models are compared. This can show that one was made from the "
        "other's files, which is another matter than learning from its answers."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
)
