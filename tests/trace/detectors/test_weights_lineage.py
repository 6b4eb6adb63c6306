"""Fine-tunes are found, also in disguise; models of other initialisations are not."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lineages import disguised, new_model, texts, tokenizer, trained, weights
from scipy import stats

from stillhouse.trace.detectors import weights_lineage

DATA = texts(1)
PROBE = texts(2, n=24)


def observed(suspect, teacher):
    return weights_lineage.observe(weights(suspect), weights(teacher), PROBE, tokens=512)


def judged(suspect, teacher):
    return weights_lineage.judge(observed(suspect, teacher), {})


@pytest.fixture(scope="module")
def teacher():
    return trained(new_model(0), DATA)


@pytest.fixture(scope="module")
def fine_tune(teacher):
    return trained(teacher, texts(3), steps=60, rate=3e-3, seed=5)


def test_a_fine_tune_is_found_by_place_and_by_sign(teacher, fine_tune):
    finding = judged(fine_tune, teacher)
    assert finding.p_value < 1e-20
    assert finding.effect["units_in_place"] > 0.9
    assert finding.effect["signs_kept"] == 1
    assert finding.effect["channels_in_place"] > 0.9


def test_disguises_change_no_output_and_hide_nothing(teacher, fine_tune):
    ids = torch.tensor([tokenizer().encode(PROBE[0])])
    for given in ({"units": True}, {"units": True, "channels": True}, {"units": False, "signs": True}):
        hidden = disguised(fine_tune, 4, **given)
        torch.testing.assert_close(hidden(ids).logits, fine_tune(ids).logits, rtol=1e-4, atol=1e-4)
        finding = judged(hidden, teacher)
        assert finding.p_value < 1e-9, given
        assert finding.effect["median_similarity"] > 0.8


def test_each_disguise_takes_only_the_test_that_it_is_against(teacher, fine_tune):
    permuted = judged(disguised(fine_tune, 4, units=True), teacher).effect
    assert permuted["units_in_place"] < 0.2
    assert permuted["signs_kept"] == 1
    assert permuted["channels_in_place"] > 0.9
    flipped = judged(disguised(fine_tune, 4, units=False, signs=True), teacher).effect
    assert flipped["units_in_place"] > 0.9
    assert 0.2 < flipped["signs_kept"] < 0.8


def relabelled(transcript, seed):
    """What observe would have written of a teacher whose units, signs and channels were dealt anew."""
    generator = np.random.default_rng(seed)
    rows = transcript.to_pylist()
    orders = {}
    for row in rows:
        key = (row["family"], row["teacher_layer"])
        if key not in orders:
            orders[key] = generator.permutation(row["teacher_width"])
        row["teacher_index"] = int(orders[key][row["teacher_index"]])
        if row["family"] == "units":
            row["similarity"] *= generator.choice([-1, 1])
    return pa.Table.from_pylist(rows, schema=transcript.schema)


def test_disguising_the_teacher_relabels_the_transcript_and_does_nothing_else(teacher):
    """So that what the judge does with relabelled transcripts is what the test does with such teachers."""
    suspect = trained(new_model(1), DATA)
    plain = observed(suspect, teacher)
    hidden = observed(suspect, disguised(teacher, 3, units=True, signs=True, channels=True))
    for family in ("units", "channels"):
        before, after = (
            sorted(
                (row["suspect_layer"], row["suspect_index"], round(abs(row["similarity"]), 3))
                for row in table.to_pylist()
                if row["family"] == family
            )
            for table in (plain, hidden)
        )
        assert before == after


def test_under_the_teachers_symmetries_p_is_valid(teacher):
    """The exact null: 1,000 redraws of the order and the signs of an unrelated teacher."""
    transcript = observed(trained(new_model(1), DATA), teacher)
    ps = np.array([weights_lineage.judge(relabelled(transcript, draw), {}).p_value for draw in range(1000)])
    for alpha in (0.5, 0.1, 0.05, 0.01):
        assert stats.binom.sf((ps <= alpha).sum() - 1, len(ps), alpha) > 1e-3, alpha
    assert (ps <= 0.2).mean() > 0.05  # and not valid by being always 1


def test_other_initialisations_on_the_same_data_are_not_found():
    """They share data, order of batches and recipe, and nothing of their beginnings.

    Neighbours in a row of models: each pair brings a new beginning, so these p-values are independent.
    """
    row = [trained(new_model(100 + seed), DATA, steps=25) for seed in range(13)]
    ps = np.array([judged(other, one).p_value for one, other in pairwise(row)])
    assert stats.binom.sf((ps <= 0.1).sum() - 1, len(ps), 0.1) > 1e-3
    assert ps.min() > 1e-4


def test_a_distilled_student_is_not_a_fine_tune(teacher):
    ps = [judged(trained(new_model(300 + seed), DATA, teacher=teacher), teacher).p_value for seed in range(4)]
    assert min(ps) > 1e-3


def test_a_student_cut_out_of_the_teacher_is_found_by_its_signs(teacher, fine_tune):
    """Half of the units and one of the layers gone: no order is left to compare, the signs are."""
    deep = trained(new_model(0, units=64, layers=3), DATA)
    cut = new_model(9, units=40, layers=2)
    state = deep.state_dict()
    for name in cut.state_dict():
        source = state[name.replace("layers.1.", "layers.2.")]
        if "gate_proj" in name or "up_proj" in name:
            source = source[10:50]
        elif "down_proj" in name:
            source = source[:, 10:50]
        cut.state_dict()[name].copy_(source)
    finding = judged(trained(cut, texts(3), steps=20, rate=3e-3), deep)
    assert finding.p_value < 1e-9
    assert finding.effect["units_in_place"] is None
    assert finding.effect["signs_kept"] > 0.9
    assert any(a.held is False and "widths" in a.text for a in finding.assumptions)


def test_the_verdict_survives_a_file(tmp_path, teacher, fine_tune):
    transcript = observed(fine_tune, teacher)
    pq.write_table(transcript, tmp_path / "weights.parquet")
    again = pq.read_table(tmp_path / "weights.parquet")
    assert weights_lineage.judge(again, {}) == weights_lineage.judge(transcript, {})


def test_what_cannot_be_compared_is_said_and_survives_a_file(tmp_path, teacher):
    other = tokenizer()
    other.add_tokens(["another"])
    table = weights_lineage.observe(weights(teacher, other), weights(teacher), PROBE)
    pq.write_table(table, tmp_path / "none.parquet")
    finding = weights_lineage.judge(pq.read_table(tmp_path / "none.parquet"), {})
    assert not finding.ran
    assert "'another'" in finding.reason
    assert finding.p_value is None
    short = weights_lineage.observe(weights(teacher), weights(teacher), ["the still"])
    assert "64 tokens" in weights_lineage.judge(short, {}).reason
    assert "no matched pair" in weights_lineage.judge(weights_lineage.SCHEMA.empty_table(), {}).reason


def test_models_without_gated_mlps_are_refused_by_name(teacher):
    from transformers import GPT2Config, GPT2LMHeadModel

    plain = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)).eval()
    finding = weights_lineage.judge(weights_lineage.observe(weights(plain), weights(teacher), PROBE), {})
    assert "gpt2" in finding.reason
