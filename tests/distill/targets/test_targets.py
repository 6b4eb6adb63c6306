"""Cached and online targets against the teacher's own logits, one document at a time; caches that resume."""

import math
from dataclasses import replace
from pathlib import Path

import divergence_oracles as oracle
import numpy as np
import pytest
import torch
from scipy import stats
from tiny_training import ARCHITECTURES, VOCABULARY, documents_of, llama
from torch import Tensor

from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward import forward_pass
from stillhouse.distill.loss.teacher_rows import DenseRows, SampledRows, TopKRows
from stillhouse.distill.targets import store
from stillhouse.distill.targets.formats import count_draws, draw
from stillhouse.distill.targets.teacher_signal import cache_targets, open_targets
from stillhouse.errors import ContextLengthError, IntegrityError, RecipeError
from stillhouse.recipe import Objective

CPU = torch.device("cpu")
DOCUMENTS = documents_of((5, 9, 3, 20, 14, 9))
REQUESTS = [
    (3, DOCUMENTS[3].predicting),
    (0, DOCUMENTS[0].predicting[:2]),
    (5, DOCUMENTS[5].predicting[::-1]),
]
HIDDEN = Objective(targets="hidden")
TOPK = Objective(targets="topk", top_k=5, temperature=1.5)
SAMPLED = Objective(targets="sampled", top_k=12, temperature=1.5)


def teacher_logits(teacher, requests=REQUESTS, documents=DOCUMENTS) -> Tensor:
    """Each document alone through the whole model, float64 [N, V]."""
    rows = []
    for index, positions in requests:
        ids_1T = torch.from_numpy(documents[index].ids.astype(np.int64))[None]
        with torch.no_grad():
            rows.append(teacher(input_ids=ids_1T, use_cache=False).logits[0, positions.copy()].double())
    return torch.cat(rows)


def cached(directory, objective, *, teacher=None, documents=DOCUMENTS, **options):
    options = {"seed": 0, "dtype": "float32"} | options
    return cache_targets(teacher or llama(), documents, objective, directory, **options)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 12)


@pytest.mark.parametrize("targets", ["hidden", "online"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_rows_are_the_models_own_logits(name, targets, tmp_path, small_shards, monkeypatch):
    """Passes of several documents, packed or padded on the right, against each document alone."""
    monkeypatch.setattr(forward_pass, "PASS_TOKENS", 30)
    teacher = ARCHITECTURES[name]()
    rows = cached(tmp_path, replace(HIDDEN, targets=targets), teacher=teacher).rows(REQUESTS, CPU)
    assert isinstance(rows, DenseRows)
    expected_NV = teacher_logits(teacher)
    torch.testing.assert_close(rows.head.logits(rows.hidden_ND).double(), expected_NV, rtol=1e-4, atol=1e-4)
    shared_NV = rows.finish_logits(rows.raw_logits(slice(None), 40).float()).log_softmax(-1)
    torch.testing.assert_close(shared_NV.double(), expected_NV[:, :40].log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_topk_rows_are_the_likeliest_ids_and_the_rest(tmp_path):
    teacher = llama()
    rows = cached(tmp_path, TOPK, teacher=teacher).rows(REQUESTS, CPU)
    assert isinstance(rows, TopKRows)
    assert rows.vocab_size == VOCABULARY
    for logits, ids, logp in zip(teacher_logits(teacher).tolist(), rows.ids_NK, rows.logp_NK1, strict=True):
        p = oracle.probabilities(logits, TOPK.temperature)
        listed = sorted(range(VOCABULARY), key=lambda i: -p[i])[:5]
        assert ids.tolist() == listed
        # float16 keeps 11 bits of each log-probability
        assert logp.exp().tolist() == pytest.approx(oracle.merged(p, listed), rel=2**-9)
        assert logp.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_topk_of_a_smaller_student_is_taken_from_the_shared_ids(tmp_path):
    teacher = llama()
    rows = cached(tmp_path, TOPK, teacher=teacher, vocab_size=40).rows(REQUESTS, CPU)
    assert rows.vocab_size == 40
    for logits, ids, logp in zip(teacher_logits(teacher).tolist(), rows.ids_NK, rows.logp_NK1, strict=True):
        p = oracle.probabilities(logits[:40], TOPK.temperature)
        assert logp.exp().tolist() == pytest.approx(oracle.merged(p, ids.tolist()), rel=2**-9)


def test_sampled_rows_hold_every_draw(tmp_path):
    rows = cached(tmp_path, SAMPLED).rows(REQUESTS, CPU)
    assert isinstance(rows, SampledRows)
    assert (rows.counts_NK.sum(dim=1) == 12).all()
    for ids, counts in zip(rows.ids_NK, rows.counts_NK, strict=True):
        drawn = ids[counts > 0].tolist()
        assert drawn == sorted(set(drawn))


def test_draws_follow_the_teacher(tmp_path):
    """Chi-squared of 43,000 draws a row; 1 in 10,000 correct samplers would fail."""
    teacher = llama()
    document = [Document("one", np.arange(8, dtype=np.int32), np.arange(8) > 5)]
    objective = Objective(targets="sampled", top_k=43_000, temperature=1.5)
    rows = cached(tmp_path, objective, teacher=teacher, documents=document).rows([(0, np.array([5, 6]))], CPU)
    logits_NV = teacher_logits(teacher, [(0, np.array([5, 6]))], document)
    p_values = []
    for logits, ids, counts in zip(logits_NV.tolist(), rows.ids_NK, rows.counts_NK, strict=True):
        expected = 43_000 * np.array(oracle.probabilities(logits, 1.5))
        observed = np.zeros(VOCABULARY)
        np.add.at(observed, ids.numpy(), counts.numpy())
        assert expected.min() > 5  # the approximation's usual condition
        p_values.append(stats.chisquare(observed, expected).pvalue)
    assert min(p_values) > 1e-4 / len(p_values)


def test_drawn_targets_give_forward_kls_gradient_on_average():
    """Mean of 4,000 estimates of 6 draws each: z-tests, of which 1 in 10,000 correct estimators fails any."""
    from stillhouse.distill.loss.logit_losses import sampled_forward_kl

    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 9, dtype=torch.float64, generator=generator).tolist()
    p = oracle.probabilities(teacher)
    ids_NR = draw(torch.tensor([p] * 4000), 6, generator)
    slopes_NV = sampled_forward_kl(
        torch.tensor([student] * 4000, dtype=torch.float64), ids_NR, torch.ones_like(ids_NR)
    )[1]
    exact = oracle.central_differences(
        lambda s: oracle.divergence(s, teacher, Objective(kind="forward_kl")), student
    )
    error_V = slopes_NV.mean(0) - torch.tensor(exact)
    z_V = error_V / (slopes_NV.std(0) / math.sqrt(4000))
    assert z_V.abs().max().item() < stats.norm.isf(1e-4 / 2 / len(p))


def test_draws_reach_every_id_of_a_long_tail():
    """100,000 ids of probability 1e-8 after one of nearly 1: float32 sums there move in steps of 6e-8.

    Five in six of the ids could then never be drawn, and the others would be drawn six times too often. Both
    bounds fail for 1 in 10,000 correct samplers.
    """
    tail, draws = 100_000, 2_000_000
    p_V = torch.cat([torch.tensor([1 - 1e-8 * tail]), torch.full((tail,), 1e-8)])
    ids_NR = draw(p_V.expand(100, -1), draws // 100, torch.Generator().manual_seed(0))
    rare = ids_NR[ids_NR > 0]
    low, high = stats.poisson.interval(1 - 1e-4, draws * 1e-8 * tail)
    assert low <= len(rare) <= high
    repeated = len(rare) - len(rare.unique())
    assert repeated <= stats.poisson.isf(1e-4, len(rare) ** 2 / (2 * tail))


def test_counting_draws():
    ids, counts, lengths = count_draws(torch.tensor([[4, 1, 4, 4], [7, 7, 7, 7], [3, 2, 1, 0]]))
    assert ids.tolist() == [1, 4, 7, 0, 1, 2, 3]
    assert counts.tolist() == [1, 3, 4, 1, 1, 1, 1]
    assert lengths.tolist() == [2, 1, 4]


@pytest.mark.parametrize("objective", [HIDDEN, TOPK, SAMPLED], ids=lambda o: o.targets)
def test_a_cache_opened_later_gives_the_same_rows(objective, tmp_path, small_shards):
    first = cached(tmp_path, objective).rows(REQUESTS, CPU)
    again = open_targets(tmp_path, DOCUMENTS, objective, teacher=llama()).rows(REQUESTS, CPU)
    for name, tensor in vars(first).items():
        if isinstance(tensor, Tensor):
            assert torch.equal(tensor, getattr(again, name))


@pytest.mark.parametrize("objective", [HIDDEN, TOPK, SAMPLED], ids=lambda o: o.targets)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(objective, tmp_path, small_shards, monkeypatch):
    cached(tmp_path / "whole", objective)
    whole = files(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("shard")]) >= 3

    class Killed(BaseException):
        pass

    forward = forward_pass.ForwardPass.hidden
    calls = []

    def dies(self, indices):
        calls.append(indices)
        if len(calls) == 3:
            raise Killed
        return forward(self, indices)

    monkeypatch.setattr(forward_pass.ForwardPass, "hidden", dies)
    with pytest.raises(Killed):
        cached(tmp_path / "killed", objective)
    with pytest.raises(IntegrityError, match=r"shard-00002.* is missing"):
        open_targets(tmp_path / "killed", DOCUMENTS, objective)
    survivors = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir() if "shard" in path.name
    }
    (tmp_path / "killed" / ".shard-00002.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    cached(tmp_path / "killed", objective)
    assert files(tmp_path / "killed") == whole
    assert len(survivors) == 2
    for name, written in survivors.items():
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == written


def test_a_finished_cache_does_not_run_the_teacher_again(tmp_path, monkeypatch):
    cached(tmp_path, HIDDEN)
    monkeypatch.setattr(forward_pass.ForwardPass, "hidden", lambda *_: pytest.fail("the teacher was run"))
    cached(tmp_path, HIDDEN)


OTHER_DOCUMENTS = [*DOCUMENTS[:-1], Document("doc-5", DOCUMENTS[5].ids, ~DOCUMENTS[5].loss)]
OTHERS = {
    "loss mask": (HIDDEN, HIDDEN, {"documents": OTHER_DOCUMENTS}),
    "order": (HIDDEN, HIDDEN, {"documents": DOCUMENTS[::-1]}),
    "teacher": (HIDDEN, HIDDEN, {"teacher": llama(tie_word_embeddings=False)}),
    "dtype": (HIDDEN, HIDDEN, {"dtype": "bfloat16"}),
    "targets": (HIDDEN, TOPK, {}),
    "temperature": (TOPK, replace(TOPK, temperature=2.0), {}),
    "top_k": (TOPK, replace(TOPK, top_k=6), {}),
    "seed": (SAMPLED, SAMPLED, {"seed": 1}),
    "vocabulary": (TOPK, TOPK, {"vocab_size": 50}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_cache_of_something_else_is_refused_and_kept(what, tmp_path):
    first, second, changes = OTHERS[what]
    cached(tmp_path, first)
    before = files(tmp_path)
    with pytest.raises(IntegrityError, match="cached with another") as caught:
        cached(tmp_path, second, **changes)
    assert str(tmp_path) in str(caught.value.hint)
    assert files(tmp_path) == before


@pytest.mark.parametrize("what", ["loss mask", "order", "teacher", "targets", "temperature", "top_k"])
def test_opening_a_cache_of_something_else_is_refused(what, tmp_path):
    first, second, changes = OTHERS[what]
    cached(tmp_path, first)
    documents = changes.get("documents", DOCUMENTS)
    with pytest.raises(IntegrityError, match="cached with another"):
        open_targets(tmp_path, documents, second, teacher=changes.get("teacher", llama()))


def test_hidden_states_serve_every_temperature_and_divergence(tmp_path):
    cached(tmp_path, HIDDEN)
    before = files(tmp_path)
    cached(tmp_path, Objective(kind="jsd", beta=0.3, temperature=2.0))
    assert files(tmp_path) == before


def test_damage_is_named(tmp_path):
    cached(tmp_path, HIDDEN)
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(IntegrityError, match=r"shard-00000\.safetensors is damaged"):
        open_targets(tmp_path, DOCUMENTS, HIDDEN)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"index\.json is damaged"):
        open_targets(tmp_path, DOCUMENTS, HIDDEN)


def test_nothing_cached_is_named(tmp_path):
    with pytest.raises(IntegrityError, match="no cached targets"):
        open_targets(tmp_path, DOCUMENTS, HIDDEN)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match="sampled"):
        cached(tmp_path, Objective(kind="reverse_kl", targets="sampled"))
    with pytest.raises(RecipeError, match="top_k: 64 is not below"):
        cached(tmp_path, Objective(targets="topk", top_k=64))
    with pytest.raises(ContextLengthError, match="doc-3 has 20 tokens"):
        cached(tmp_path, HIDDEN, teacher=llama(max_position_embeddings=16))
    assert not list(tmp_path.iterdir())


def test_the_teacher_is_left_as_it_was(tmp_path):
    teacher = llama().train()
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    cached(tmp_path, HIDDEN, teacher=teacher, dtype="bfloat16")
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())


def test_hidden_states_are_kept_in_the_type_that_the_teacher_ran_in(tmp_path):
    for dtype in ("float32", "bfloat16"):
        rows = cached(tmp_path / dtype, HIDDEN, dtype=dtype).rows(REQUESTS, CPU)
        assert isinstance(rows, DenseRows)
        assert rows.hidden_ND.dtype == rows.head.weight_VD.dtype == getattr(torch, dtype)


def test_a_large_corpus_has_larger_shards_not_more(monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 10)
    monkeypatch.setattr(store, "MAX_SHARDS", 4)
    documents = documents_of([7] * 100)
    locations = store.plan_locations(documents)
    assert max(location.shard for location in locations) < 4
    taken = sorted(
        (location.shard, row)
        for location in locations
        for row in range(location.start, location.start + location.counted)
    )
    assert len(set(taken)) == len(taken) == sum(document.counted for document in documents)


@pytest.mark.slow
def test_bfloat16_hidden_states_of_a_real_model_are_near_its_float32_logits(tmp_path):
    """SmolLM2-135M-Instruct: what bfloat16 costs, as KL from the exact distribution, in nats a token."""
    from stillhouse.models import load_weights
    from stillhouse.models.embedded import embedded_path

    if embedded_path("smollm2") is None:
        pytest.skip("the embedded model is not installed")
    weights = load_weights("embedded:smollm2")
    ids = weights.tokenizer(" ".join(Path(__file__).read_text().split()))["input_ids"][:256]
    documents = [Document("text", np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))]
    requests = [(0, documents[0].predicting)]
    exact_NV = teacher_logits(weights.model, requests, documents).log_softmax(-1)
    signal = cached(tmp_path, HIDDEN, teacher=weights.model, documents=documents, dtype="bfloat16")
    rows = signal.rows(requests, CPU)
    assert isinstance(rows, DenseRows)
    kept_NV = (
        rows.finish_logits(rows.raw_logits(slice(None), rows.vocab_size).float()).log_softmax(-1).double()
    )
    kl = (exact_NV.exp() * (exact_NV - kept_NV)).sum(-1).mean().item()
    assert 0 < kl < 0.01
