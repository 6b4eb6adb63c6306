"""Every kind of objective is complete, and the recipe and the losses accept the same ones."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import divergence_oracles as oracle
import pytest
import torch

from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.logit_losses import require_supported
from stillhouse.distill.loss.teacher_rows import DenseRows, SampledRows, TeacherRows
from stillhouse.divergences import OBJECTIVES, ObjectiveName
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective, parse_recipe

DOCS = Path(__file__).parents[3] / "docs"
GRID = [
    Objective(
        kind=kind, align=align, targets=targets, alpha=alpha, beta=beta, cross_entropy=share, loss_on=loss_on
    )
    for kind, align, targets, alpha, beta, share, loss_on in product(
        get_args(ObjectiveName),
        ("tokens", "spans"),
        ("hidden", "topk", "sampled", "online"),
        (0.0, 0.1, 1.0),
        (0.0, 0.5, 1.0),
        (0.0, 0.5, 1.0),
        ("assistant", "all"),
    )
]

N, D, V = 3, 5, 11
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN_ND, TEACHER_ND = torch.randn(N, D, generator=GENERATOR), torch.randn(N, D, generator=GENERATOR)
WEIGHT_VD = torch.randn(V, D, generator=GENERATOR)
DENSE = DenseRows(TEACHER_ND, LMHead(WEIGHT_VD))
SAMPLED = SampledRows(
    torch.tensor([[1, 4], [0, 10], [2, 3]]), torch.tensor([[3.0, 1.0], [2.0, 2.0], [4.0, 0.0]]), V
)


def can_work(objective: Objective) -> bool:
    """What docs/objectives.md says, case by case."""
    if objective.kind == "cross_entropy" or objective.cross_entropy == 1:
        return True
    if objective.kind in ("skew_forward_kl", "skew_reverse_kl") and objective.alpha == 1:
        return False
    if objective.kind == "uld" or objective.align == "spans":
        return objective.targets in ("hidden", "online") and objective.loss_on == "assistant"
    is_forward_kl = objective.kind == "forward_kl" or (objective.kind == "jsd" and objective.beta == 0)
    return objective.targets != "sampled" or is_forward_kl


def in_a_recipe(objective: Objective) -> str:
    fields = ("kind", "align", "targets", "alpha", "beta", "cross_entropy", "loss_on")
    values = ", ".join(f"{name}: {getattr(objective, name)}" for name in fields)
    rest = "name: a\nteacher: {model: m}\nstudent: {model: m}\nprompts: {source: s}\n"
    return f"{rest}objective: {{{values}}}\n"


def refusal(function, *arguments) -> str | None:
    try:
        function(*arguments)
    except RecipeError as error:
        return str(error)
    return None


def test_recipes_and_losses_refuse_the_same_objectives_for_the_same_reason():
    for objective in GRID:
        by_loss = refusal(require_supported, objective)
        by_recipe = refusal(parse_recipe, in_a_recipe(objective))
        assert (by_loss is None) == (by_recipe is None) == can_work(objective), objective
        if by_loss is not None:
            assert by_recipe is not None
            assert by_loss in by_recipe


def test_a_recipe_can_name_exactly_the_kinds_that_there_are():
    assert set(get_args(ObjectiveName)) == set(OBJECTIVES)
    assert "reverse_kl" in (refusal(parse_recipe, in_a_recipe(Objective(kind="reverse_lk"))) or "")  # pyright: ignore


def test_every_divergence_has_an_oracle_and_takes_fields_of_the_section():
    divergences = {name for name, kind in OBJECTIVES.items() if kind.function is not None}
    assert divergences == set(oracle.KINDS)
    for kind in OBJECTIVES.values():
        assert all(hasattr(Objective(), name) for name in kind.parameters)
    assert OBJECTIVES["jsd"].parameters == ("beta",)
    assert OBJECTIVES["forward_kl"].parameters == ()


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.reads_teacher])
def test_the_page_about_objectives_has_a_row_for_every_divergence(name):
    assert f"\n| `{name}` |" in (DOCS / "objectives.md").read_text()


def loss_and_slope(objective: Objective, teacher: TeacherRows) -> tuple[float, torch.Tensor]:
    hidden_ND = HIDDEN_ND.clone().requires_grad_()
    loss = fused_loss(hidden_ND, LMHead(WEIGHT_VD), torch.zeros(N, dtype=torch.int64), teacher, objective)
    loss.backward()
    assert hidden_ND.grad is not None
    return loss.item(), hidden_ND.grad


@pytest.mark.parametrize(
    ("beta", "limit", "teacher"),
    [(0.0, "forward_kl", DENSE), (1.0, "reverse_kl", DENSE), (0.0, "forward_kl", SAMPLED)],
)
def test_at_its_ends_jsd_is_the_kl_to_the_last_bit(beta, limit, teacher):
    loss, slope_ND = loss_and_slope(Objective(kind="jsd", beta=beta), teacher)
    same, same_ND = loss_and_slope(Objective(kind=limit), teacher)
    assert loss == same != 0
    assert torch.equal(slope_ND, same_ND)


def test_the_loss_takes_drawn_ids_for_forward_kl_only():
    with pytest.raises(AssertionError, match="drawn ids"):
        loss_and_slope(Objective(kind="jsd", beta=0.5), SAMPLED)
