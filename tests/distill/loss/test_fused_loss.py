"""The chunked loss against rows done by hand, its gradients against differences, and what it allocates."""

import divergence_oracles as oracle
import pytest
import torch
from divergence_oracles import KINDS
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from stillhouse.distill.loss import fused_loss as module
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.teacher_rows import DenseRows, SampledRows, TeacherRows, TopKRows
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

N, D, V = 7, 5, 13
SIZES = {"equal": V, "teacher larger": V + 4, "student larger": V - 4}
LABELS = torch.tensor([0, 12, 3, 3, 7, 11, 5])
FORMS = ("hidden", "topk", "sampled")


def numbers(*shape: int, seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head weight and bias that want gradients."""
    parts = numbers(N, D, seed=1), numbers(V, D, seed=2), numbers(V, seed=3)
    return tuple(part.to(dtype).requires_grad_() for part in parts)  # pyright: ignore[reportReturnType]


def dense(vocab: int = V, dtype=torch.float64, **head) -> DenseRows:
    hidden_ND, weight_VD = numbers(N, 4, seed=4, dtype=dtype), numbers(V + 4, 4, seed=5, dtype=dtype)
    return DenseRows(hidden_ND, LMHead(weight_VD[:vocab], **head))


def rows_of(form: str, vocab: int = V) -> TeacherRows:
    if form == "hidden":
        return dense(vocab)
    order_NV = numbers(N, vocab, seed=6).argsort(dim=1)
    if form == "topk":
        return TopKRows(order_NV[:, :3], numbers(N, 4, seed=7).log_softmax(-1), vocab)
    counts = torch.tensor([[4.0, 1.0, 2.0], [7.0, 0.0, 0.0]]).repeat(4, 1)[:N]
    return SampledRows(order_NV[:, :3], counts, vocab)


def logits_by_hand(hidden_ND, weight_VD, bias_V=None, softcap=None, scale=1.0) -> list[list[float]]:
    logits_NV = hidden_ND.detach().double() @ weight_VD.detach().double().T
    logits_NV = scale * (logits_NV if bias_V is None else logits_NV + bias_V.detach().double())
    return (logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)).tolist()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_each_rows_divergence_over_the_shared_ids_and_cross_entropy_over_all(kind, sizes):
    """Vocabularies of different padding: both sides cut to the shorter, then normalised."""
    hidden_ND, weight_VD, bias_V = student()
    rows = dense(SIZES[sizes], softcap=1.5, scale=0.7)
    objective = Objective(kind=kind, temperature=1.7, cross_entropy=0.3)
    head = LMHead(weight_VD, bias_V, softcap=2.0, scale=1.3)
    shared = min(V, SIZES[sizes])
    expected = 0.0
    student_NV = logits_by_hand(hidden_ND, weight_VD, bias_V, 2.0, 1.3)
    teacher_NV = logits_by_hand(rows.hidden_ND, rows.head.weight_VD, None, 1.5, 0.7)
    for s, t, label in zip(student_NV, teacher_NV, LABELS.tolist(), strict=True):
        expected += 0.7 * oracle.divergence(s[:shared], t[:shared], objective)
        expected += 0.3 * oracle.cross_entropy(s, label)
    assert fused_loss(hidden_ND, head, LABELS, rows, objective).item() == pytest.approx(expected, rel=1e-10)


GRADIENT_CASES = [
    *((kind, "hidden", sizes, None, 0.3) for kind in KINDS for sizes in SIZES),
    *((kind, "hidden", "student larger", 2.0, 0.0) for kind in ["cross_entropy", *KINDS]),
    *((kind, "topk", sizes, None, 0.3) for kind in KINDS for sizes in ("equal", "student larger")),
    *(("forward_kl", "sampled", sizes, 2.0, 0.3) for sizes in ("equal", "student larger")),
]


@pytest.mark.parametrize(("kind", "form", "sizes", "softcap", "text"), GRADIENT_CASES)
def test_gradients_are_the_slope_of_the_loss(kind, form, sizes, softcap, text):
    rows = rows_of(form, SIZES[sizes])
    objective = Objective(kind=kind, temperature=1.7, cross_entropy=text)

    def loss(hidden_ND, weight_VD, bias_V):
        return fused_loss(
            hidden_ND, LMHead(weight_VD, bias_V, softcap, 1.3), LABELS, rows, objective, chunk=3
        )

    assert torch.autograd.gradcheck(loss, student(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_topk_rows_are_the_merged_divergence_at_the_temperature(kind):
    hidden_ND, weight_VD, _ = student()
    rows = rows_of("topk")
    assert isinstance(rows, TopKRows)
    objective = Objective(kind=kind, temperature=1.7)
    expected = 0.0
    for s, ids, logp in zip(logits_by_hand(hidden_ND, weight_VD), rows.ids_NK, rows.logp_NK1, strict=True):
        merged = oracle.merged(oracle.probabilities(s, 1.7), ids.tolist())
        expected += 1.7**2 * oracle.between(logp.exp().tolist(), merged, objective)
    loss = fused_loss(hidden_ND, LMHead(weight_VD), LABELS, rows, objective)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_ids_that_only_the_student_has_get_no_gradient_and_no_share():
    hidden_ND, weight_VD, _ = student()
    fused_loss(hidden_ND, LMHead(weight_VD), LABELS, dense(V - 4), Objective(kind="forward_kl")).backward()
    assert weight_VD.grad is not None
    assert not weight_VD.grad[V - 4 :].any()
    assert weight_VD.grad[: V - 4].abs().min() > 0


def test_a_student_equal_to_its_teacher_on_the_shared_ids_is_at_the_minimum():
    """Were missing ids padded with a logit of 0, neither the loss nor the gradient would vanish."""
    hidden_ND, weight_VD, _ = student()
    for vocab in (V + 4, V - 4):
        weight = torch.cat([weight_VD.detach(), numbers(4, D, seed=8)])[:vocab]
        rows = DenseRows(hidden_ND.detach(), LMHead(weight))
        for kind in KINDS:
            leaf_ND = hidden_ND.detach().clone().requires_grad_()
            loss = fused_loss(leaf_ND, LMHead(weight_VD.detach()), LABELS, rows, Objective(kind=kind))
            loss.backward()
            assert leaf_ND.grad is not None
            assert loss.item() == pytest.approx(0, abs=1e-13)
            assert leaf_ND.grad.abs().max() < 1e-13


@settings(max_examples=40, deadline=None)
@given(
    chunk=st.integers(1, N + 3),
    tile=st.integers(1, 3 * V),
    kind=st.sampled_from(KINDS),
    form=st.sampled_from(FORMS[:2]),
)
def test_chunks_and_tiles_change_nothing(chunk, tile, kind, form):
    def result(chunk: int, tile: int) -> list[Tensor]:
        hidden_ND, weight_VD, bias_V = student()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "TILE_ENTRIES_CPU", tile)
            loss = fused_loss(
                hidden_ND, LMHead(weight_VD, bias_V), LABELS, rows_of(form), Objective(kind=kind), chunk=chunk
            )
        loss.backward()
        return [t for t in (loss.detach(), hidden_ND.grad, weight_VD.grad, bias_V.grad) if t is not None]

    torch.testing.assert_close(result(chunk, tile), result(512, 2**21), rtol=1e-12, atol=1e-12)


def test_weights_scale_rows():
    weights_N = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0, 1.0])
    objective = Objective(kind="jsd", cross_entropy=0.2)
    hidden_ND, weight_VD, _ = student()
    loss = fused_loss(hidden_ND, LMHead(weight_VD), LABELS, dense(), objective, chunk=2, weights_N=weights_N)
    loss.backward()
    rows, alone = dense(), []
    for i in range(N):
        one = DenseRows(rows.hidden_ND[i : i + 1], rows.head)
        leaf = hidden_ND.detach()[i : i + 1].clone().requires_grad_()
        value = fused_loss(leaf, LMHead(weight_VD.detach()), LABELS[i : i + 1], one, objective)
        value.backward()
        alone.append((value.item(), leaf.grad))
    assert loss.item() == pytest.approx(
        sum(w * v for w, (v, _) in zip(weights_N.tolist(), alone, strict=True))
    )
    expected_ND = torch.cat([w * g for w, (_, g) in zip(weights_N, alone, strict=True)])
    torch.testing.assert_close(hidden_ND.grad, expected_ND)


def test_an_outer_factor_reaches_every_gradient():
    plain, scaled = student(), student()
    objective = Objective(kind="reverse_kl")
    fused_loss(plain[0], LMHead(*plain[1:]), LABELS, dense(), objective).backward()
    (fused_loss(scaled[0], LMHead(*scaled[1:]), LABELS, dense(), objective) / 8).backward()
    for one, eighth in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one.grad / 8, eighth.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_float64_as_its_rounding_allows(kind):
    """Logits keep 8 bits, so at most 2^-9 of their size is lost; sums over 4,000 ids must not add to that.

    The gradient is rounded twice more on its way through the head.
    """
    hidden_ND, weight_VD = numbers(64, 32, seed=1), numbers(4000, 32, seed=2) * 0.2
    teacher_ND = hidden_ND + 0.5 * numbers(64, 32, seed=3)
    labels_N = torch.arange(64)
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        leaf = hidden_ND.bfloat16().to(dtype).requires_grad_()
        weight = weight_VD.bfloat16().to(dtype).requires_grad_()
        rows = DenseRows(teacher_ND.bfloat16().to(dtype), LMHead(weight.detach()))
        loss = fused_loss(leaf, LMHead(weight), labels_N, rows, Objective(kind=kind), chunk=16)
        loss.backward()
        assert leaf.grad is not None
        assert weight.grad is not None
        results.append((loss, leaf.grad.double(), weight.grad.double()))
    (exact, *exact_gradients), (rounded, *rounded_gradients) = results
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2**-8)
    for wide, narrow in zip(exact_gradients, rounded_gradients, strict=True):
        assert (wide - narrow).norm() < 2**-6 * wide.norm()


def test_a_float32_head_under_bfloat16_hidden_states_gets_a_float32_gradient():
    hidden_ND, weight_VD = numbers(N, D, seed=1, dtype=torch.bfloat16), numbers(V, D, seed=2).float()
    weight_VD.requires_grad_()
    fused_loss(hidden_ND, LMHead(weight_VD), LABELS, None, Objective(kind="cross_entropy")).backward()
    assert weight_VD.grad is not None
    assert weight_VD.grad.dtype == torch.float32


class Largest(TorchDispatchMode):
    """Remembers the most entries of any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_by_vocabulary_is_made(form, trains_head, dtype):
    rows, hidden, vocab, chunk = 2048, 8, 3000, 32
    hidden_ND = numbers(rows, hidden, seed=1, dtype=dtype).requires_grad_()
    weight_VD = numbers(vocab, hidden, seed=2, dtype=dtype).requires_grad_(trains_head)
    ids_NK = torch.arange(4).repeat(rows, 1)
    teacher_rows = {
        "hidden": DenseRows(hidden_ND.detach(), LMHead(weight_VD.detach())),
        "topk": TopKRows(ids_NK, torch.zeros(rows, 5).log_softmax(-1), vocab),
        "sampled": SampledRows(ids_NK, torch.ones(rows, 4), vocab),
    }[form]
    objective = Objective(kind="forward_kl", cross_entropy=0.5, temperature=2.0)
    labels_N = torch.zeros(rows, dtype=torch.int64)
    with Largest() as largest:
        fused_loss(hidden_ND, LMHead(weight_VD), labels_N, teacher_rows, objective, chunk=chunk).backward()
    assert chunk * vocab <= largest.entries <= max(chunk * vocab, rows * hidden, vocab * hidden)


def test_without_gradients_nothing_is_differentiated():
    hidden_ND, weight_VD, _ = student()
    expected = fused_loss(hidden_ND, LMHead(weight_VD), LABELS, dense(), Objective(kind="forward_kl"))
    with torch.no_grad():
        loss = fused_loss(hidden_ND, LMHead(weight_VD), LABELS, dense(), Objective(kind="forward_kl"))
    assert not loss.requires_grad
    assert loss.item() == expected.item()


def test_inputs_are_not_changed():
    hidden_ND, weight_VD, bias_V = student()
    rows = dense()
    tensors = (hidden_ND, weight_VD, bias_V, rows.hidden_ND, rows.head.weight_VD)
    before = [t.detach().clone() for t in tensors]
    fused_loss(hidden_ND, LMHead(weight_VD, bias_V), LABELS, rows, Objective(kind="jsd")).backward()
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("form", ["topk", "sampled"])
def test_targets_over_ids_that_the_student_lacks_are_refused(form):
    hidden_ND, weight_VD, _ = student()
    rows = rows_of(form, V + 4)
    with pytest.raises(RecipeError, match=r"17 ids; the student has 13"):
        fused_loss(hidden_ND, LMHead(weight_VD), LABELS, rows, Objective(kind="forward_kl"))
