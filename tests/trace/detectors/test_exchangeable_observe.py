"""From models to a transcript to a finding: a suspect that learned the log, and one that did not."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import binom
from still_command import still
from test_resample import delivered, write_log

from stillhouse.errors import CapabilityError, CorpusError, UsageError
from stillhouse.models import load_weights
from stillhouse.stats import log_size
from stillhouse.trace import surrogate
from stillhouse.trace.delivered_log import read_log
from stillhouse.trace.detectors.exchangeable.judge import judge
from stillhouse.trace.detectors.exchangeable.observe import observe
from stillhouse.trace.plan import parse_plan
from stillhouse.trace.resample import resample
from stillhouse.trace.surrogate import measure_surrogate
from stillhouse.trace.suspects.base import SuspectCapabilities
from stillhouse.trace.suspects.open import open_suspect


@pytest.fixture(scope="module")
def case(tiny_teacher, tmp_path_factory):
    """A log of some 60 outputs, its resamples, and a suspect that learned the first half by heart."""
    place = tmp_path_factory.mktemp("case")
    log = read_log(write_log(place / "log.jsonl", delivered(tiny_teacher, 60)))
    resamples = resample(str(tiny_teacher), log, 3, 1, place / "r.parquet")
    weights = load_weights(str(tiny_teacher))
    model, tokenizer = weights.model, weights.tokenizer
    documents = [
        weights.template.encode(tokenizer, [*row.prompt, {"role": "assistant", "content": row.output}])[0]
        for row in log.rows[:30]
    ]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(40):
        for start in range(0, 30, 10):
            part = documents[start : start + 10]
            width = max(map(len, part))
            ids = torch.tensor([d + [2] * (width - len(d)) for d in part])
            labels = torch.tensor([d + [-100] * (width - len(d)) for d in part])
            loss = model(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(place / "suspect")
    tokenizer.save_pretrained(place / "suspect")
    return log, resamples, place / "suspect"


@pytest.mark.parametrize("score", ["loglik", "min_k", "reference", "teacher", "overlap"])
def test_who_learned_the_log_is_found_and_the_teacher_itself_is_not(case, tiny_teacher, score):
    log, resamples, path = case
    guilty, innocent = open_suspect(str(path)), open_suspect(str(tiny_teacher))
    reference = innocent if score == "reference" else None
    table = observe(guilty, log, resamples, scores=[score], reference=reference, teacher=innocent)
    found = judge(table, {"score": score})
    assert found.n == len(log.rows) and found.p_value < 0.001 and found.effect["f_low"] > 0
    if score not in ("reference", "teacher"):
        cleared = judge(observe(innocent, log, resamples, scores=[score]), {"score": score})
        assert cleared.p_value > 0.001
        assert next(a for a in cleared.assumptions if "same teacher" in a.text).held is True
    if score == "reference":
        assert next(a for a in found.assumptions if "reference model" in a.text).held is True
    guilty.close()
    innocent.close()


def test_the_transcript_holds_what_was_asked_and_nothing_was_padded(case):
    log, resamples, path = case
    suspect = open_suspect(str(path))
    transcript = observe(suspect, log, resamples, scores=["loglik", "min_k"], seed=4)
    rows = transcript.to_pylist()
    assert len(rows) == len(log.rows) * 4 and {row["account"] for row in rows} == {"north"}
    by_id = {row.id: row for row in log.rows}
    for row in rows[:40]:
        delivered_row = by_id[row["id"]]
        texts = [delivered_row.output, *resamples.texts[row["id"]]]
        assert row["text"] == texts[row["draw"]]
        [alone] = suspect.loglik([delivered_row.prompt], [row["text"]])
        assert row["loglik"] == pytest.approx(alone.loglik, rel=0.02, abs=0.1)
        assert row["tokens"] == alone.tokens
        assert row["reference_loglik"] is None and row["overlap"] is None
    asked = list(dict.fromkeys(row["id"] for row in rows))
    assert asked != [row.id for row in log.rows], "the order is drawn, so that stopping early samples the log"
    again = observe(suspect, log, resamples, scores=["loglik", "min_k"], seed=4)
    assert again.equals(transcript)
    suspect.close()


def test_stopping_early_asks_less(case, monkeypatch):
    monkeypatch.setattr("stillhouse.trace.detectors.exchangeable.observe.SMALL_CHUNK", 5)
    log, resamples, path = case
    suspect = open_suspect(str(path))
    early = observe(suspect, log, resamples, stop_at=20.0)
    finding = judge(early, {"stop_at": 20.0})
    assert finding.e_value >= 20 and finding.p_value <= 1 / 20
    asked = len(early) / 4
    assert finding.n <= asked < len(log.rows) and asked - finding.n < 5
    assert finding.effect["saved"] == pytest.approx(1 - finding.n / len(log.rows))
    suspect.close()


def test_a_suspect_that_was_stopped_in_the_middle_is_asked_only_the_rest(case, tmp_path, monkeypatch):
    monkeypatch.setattr("stillhouse.trace.detectors.exchangeable.observe.LARGE_CHUNK", 16)
    log, resamples, path = case
    suspect, journal = open_suspect(str(path)), tmp_path / "exchangeable-0.journal"
    whole, loglik, sizes = observe(suspect, log, resamples), suspect.loglik, []

    def counting(prompts, texts):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(texts))
        return loglik(prompts, texts)

    monkeypatch.setattr(suspect, "loglik", counting)
    with pytest.raises(KeyboardInterrupt):
        observe(suspect, log, resamples, journal=journal)
    with journal.open("ab") as file:
        file.write(b'{"part": [{"id": "tor')  # killed in the middle of a line
    sizes.clear()
    sizes.append(0)
    with pytest.raises(KeyboardInterrupt):
        observe(suspect, log, resamples, journal=journal)  # one part more
    monkeypatch.setattr(suspect, "loglik", loglik)
    resumed = observe(suspect, log, resamples, journal=journal)
    assert resumed.equals(whole, check_metadata=True)
    asked = []
    monkeypatch.setattr(suspect, "loglik", lambda *texts: asked.append(texts) or loglik(*texts))
    assert observe(suspect, log, resamples, journal=journal).equals(whole) and not asked
    assert observe(suspect, log, resamples, seed=1, journal=journal).num_rows == whole.num_rows
    assert asked, "in another order they are other questions"


def test_a_resample_that_the_log_would_have_left_out_is_left_out(case):
    """The log drops an output that repeats an earlier one to the same prompt."""
    log, resamples, path = case
    first, second = log.rows[0], log.rows[1]
    twin = dataclasses.replace(second, prompt=first.prompt)
    other = dataclasses.replace(log, rows=(first, twin))
    texts = {first.id: resamples.texts[first.id], second.id: [first.output, *resamples.texts[second.id]]}
    suspect = open_suspect(str(path))
    transcript = observe(suspect, other, dataclasses.replace(resamples, texts=texts))
    said = [row["text"] for row in transcript.to_pylist() if row["id"] == second.id and row["draw"] > 0]
    assert first.output not in said and len(said) == 3
    suspect.close()


def test_what_a_suspect_cannot_do_is_said_before_it_is_asked(case, tiny_teacher):
    log, resamples, _ = case
    suspect = open_suspect(str(tiny_teacher))
    with pytest.raises(UsageError, match="reference model"):
        observe(suspect, log, resamples, scores=["reference"])
    with pytest.raises(UsageError, match="needs the archived teacher"):
        observe(suspect, log, resamples, scores=["teacher"])
    suspect.can = SuspectCapabilities(generate=True, logprobs=False, weights=False)
    with pytest.raises(CapabilityError) as refused:
        observe(suspect, log, resamples)
    assert "overlap" in refused.value.hint
    suspect.close()


def test_without_resamples_nothing_is_asked_and_the_judge_says_why(case, tiny_teacher):
    log, resamples, _ = case
    suspect = open_suspect(str(tiny_teacher))
    transcript = observe(suspect, log, dataclasses.replace(resamples, texts={}))
    assert len(transcript) == 0
    finding = judge(transcript, {})
    assert not finding.ran and finding.p_value is None
    suspect.close()


def test_public_outputs_break_an_assumption(case, tiny_teacher):
    log, resamples, _ = case
    suspect = open_suspect(str(tiny_teacher))
    sentence = " ".join(f"word{n}" for n in range(13))
    published = dataclasses.replace(log.rows[0], output=sentence)
    log = dataclasses.replace(log, rows=(published, *log.rows[1:]))
    for texts, held in (([f"As is known, {sentence}."], False), (["something else"], True)):
        transcript = observe(suspect, log, resamples, public=texts)
        found = next(a for a in judge(transcript, {}).assumptions if "not public" in a.text)
        assert found.held is held
    suspect.close()


def test_a_surrogate_tells_what_reading_leaves_behind(case, tiny_teacher, tmp_path):
    log, resamples, path = case
    read = dataclasses.replace(log, rows=log.rows[:30])
    suspect, teacher = open_suspect(str(path)), open_suspect(str(tiny_teacher))
    found, nothing = measure_surrogate(suspect, read, resamples), measure_surrogate(teacher, read, resamples)
    suspect.close()
    teacher.close()
    assert found.n == len(read.rows) and 2.8 < found.resamples_each <= 3
    assert 0.5 < found.low < found.auc <= found.high and found.auc > 0.8
    assert nothing.low < 0.5 and not nothing.is_informative and nothing.sizes(1000, 0.8) == {}
    sizes = found.sizes(1000, 0.8)
    assert sizes == {
        share: log_size(share, found.low, found.resamples_each, 1000, 0.8) for share in (0.01, 0.05, 0.2, 1.0)
    }
    assert sizes[0.01] > 20 * sizes[0.05] > 200 * sizes[0.2], "about the square of the share"
    with pytest.raises(CorpusError, match="a resample of its own"):
        measure_surrogate(suspect, read, dataclasses.replace(resamples, texts={}))


def test_the_interval_of_a_surrogate_covers_as_often_as_it_says(monkeypatch):
    """Scores are normal, those of read outputs higher by δ, so that AUC is Φ(δ/√2)."""
    generator, covered, delta, times = np.random.default_rng(0), 0, 0.8, 200
    truth = float(ndtr(delta / math.sqrt(2)))
    for _ in range(times):
        scores_NK1 = generator.normal(size=(150, 4)) + delta * (np.arange(4) == 0)
        monkeypatch.setattr(surrogate, "observe", lambda *given, **named: None)
        monkeypatch.setattr(
            surrogate, "score_matrix", lambda *given, s=scores_NK1: SimpleNamespace(scores_NK1=s)
        )
        found = measure_surrogate(None, None, None)  # type: ignore[arg-type]
        assert found.auc == pytest.approx((scores_NK1[:, :1] > scores_NK1[:, 1:]).mean())
        covered += found.low <= truth <= found.high
    assert covered >= binom.ppf(0.001, times, 0.95)


def test_the_command_prints_what_a_plan_takes(case, tmp_path):
    log, _, path = case
    rows = [{"id": row.id, "prompt": row.prompt[0]["content"], "output": row.output} for row in log.rows[:30]]
    used = write_log(tmp_path / "used.jsonl", rows)
    told = still(
        "trace", "surrogate", "--model", path, "--log", used, "--resamples", path.parent / "r.parquet",
        cwd=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    last = told.stdout.splitlines()[-1]
    plan = parse_plan("tests: {exchangeable: {" + last.removeprefix("For the plan: ") + "}}")
    assert 0.5 < min(plan.tests.exchangeable.surrogate_auc) < max(plan.tests.exchangeable.surrogate_auc) <= 1
    assert max(map(len, told.stdout.splitlines())) <= 80
