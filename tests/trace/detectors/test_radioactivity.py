"""Radioactivity: students that learned from marked text, and innocents however much they copy."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from marked_students import VOCABULARY, WINDOW, Student, Teacher, closed_table, open_table
from scipy import stats

from stillhouse.errors import ModelError, UsageError
from stillhouse.models import Reply, Sampling, Weights, load_tokenizer, load_weights
from stillhouse.trace.delivered_log import Delivered
from stillhouse.trace.detectors.radioactivity.judge import judge, placebo_keys
from stillhouse.trace.detectors.radioactivity.observe import (
    SCHEMA,
    closed_transcript,
    observe_closed,
    observe_open,
)
from stillhouse.trace.finding import Finding
from stillhouse.watermark import Mark

TEACHER = Teacher(0)
PLACEBO = placebo_keys(1, 1)


def parameters(key: bytes, **others) -> dict:
    return {
        "key": key.hex(),
        "scheme": "kgw",
        "gamma": 0.25,
        "window": WINDOW,
        "level": "L2",
        "seed": 0,
        **others,
    }


def most(level: float, tries: int) -> int:
    """Rejections that chance exceeds once in 10,000 times."""
    return int(stats.binom.ppf(0.9999, tries, level))


@pytest.mark.parametrize("scheme", ["kgw", "gumbel", "tournament"])
@pytest.mark.parametrize("mode", ["open", "closed"])
def test_a_student_of_marked_text_fires_and_one_of_unmarked_text_does_not(scheme, mode):
    key = bytes(range(32))
    marked = TEACHER.texts(1, 100, 50, Mark(key, scheme, WINDOW))
    found = []
    for seen in (marked, TEACHER.texts(2, 100, 50)):
        student = Student(seen)
        table = open_table(student, marked) if mode == "open" else closed_table(student.answers(3, 100, 50))
        found.append(judge(table, parameters(key, scheme=scheme)))
    guilty, innocent = found
    assert guilty.p_value < 1e-9
    assert guilty.e_value > 1000
    assert guilty.effect["placebo_rank"] == 1
    assert guilty.effect["mean_low"] > guilty.effect["expected"]
    assert innocent.p_value > 1e-3
    assert innocent.e_value < 20
    for finding in found:
        assert finding.level == "L2"
        assert finding.effect["placebo_smallest_p"] > 1e-5
        assert all(one.held is not False for one in finding.assumptions)
        assert finding.series["pairs"][-1] == finding.n
        assert finding.series["log10_e"][-1] == pytest.approx(
            min(np.log10(finding.e_value), 308), abs=0.2
        ) or (finding.series["log10_e"][-1] > 307)


class Parrot:
    """Learned nothing; after a window in its context it says what followed there, else what it likes."""

    def __init__(self, seed: int) -> None:
        self.taste = np.random.default_rng(seed).integers(0, VOCABULARY, (VOCABULARY, VOCABULARY))

    def likeliest(self, ids: list[int]) -> list[int]:
        known, said = {}, [0]
        for a, b, following in zip(ids[:-1], ids[1:], [*ids[2:], None], strict=True):
            said.append(known.get((a, b), int(self.taste[a, b])))
            known[a, b] = following
        return said


def innocent_trials(exclude: bool, trials: int) -> list[Finding]:
    """Each with a new key, new marked prompts and texts, and a parrot that reads them."""
    rng, found = np.random.default_rng(7), []
    for trial in range(trials):
        key = rng.bytes(32)
        mark = Mark(key, "kgw", WINDOW)
        texts = [TEACHER.text(rng, 50, mark) for _ in range(8)]
        prompts = [
            [*texts[n - 1][:20], *texts[n][:25]] for n in range(8)
        ]  # half of the answer is in the prompt
        table = open_table(Parrot(trial), texts, prompts)
        if not exclude:  # the same predictions with a context that hides what was read
            table = table.set_column(
                table.column_names.index("context"), "context", pa.array([[]] * 8, pa.list_(pa.int32()))
            )
        found.append(judge(table, parameters(key, placebo_keys=PLACEBO)))
    return found


def test_an_innocent_that_copies_its_context_is_cleared_over_many_keys():
    """Size at three levels over 250 redraws of key and texts; each bound fails by chance once in 10,000."""
    found = innocent_trials(True, 250)
    p_values = np.array([one.p_value for one in found])
    for level in (0.5, 0.05, 0.01):
        assert (p_values <= level).sum() <= most(level, 250)
    assert p_values.min() < 0.1 < 0.9 < p_values.max()
    e_values = np.array([one.e_value for one in found])
    assert e_values.mean() < 1 + 4 * e_values.std() / 250**0.5
    assert min(one.effect["left_out_in_context"] for one in found) > 50


def test_counting_what_was_in_context_would_have_accused_it():
    """The control of the test above: the copies are there, and only the exclusion keeps them out."""
    assert np.median([one.p_value for one in innocent_trials(False, 10)]) < 1e-6


def test_an_echo_of_a_marked_prompt_is_no_evidence_in_closed_mode():
    key = bytes(range(32))
    prompts = TEACHER.texts(1, 40, 50, Mark(key, "kgw", WINDOW))
    echoed = judge(closed_table(prompts, prompts), parameters(key))
    assert echoed.p_value is None
    assert "repeats its context" in str(echoed.reason)
    own = TEACHER.texts(5, 40, 60)
    mixed = judge(closed_table([p + o for p, o in zip(prompts, own, strict=True)], prompts), parameters(key))
    assert mixed.p_value > 1e-3


def test_pairs_are_those_of_a_slow_reading_of_the_rules():
    """Windows of the text only, none that ended earlier anywhere in the context, each pair once."""
    rng = np.random.default_rng(3)
    rows, pairs, left_out = [], [], 0
    for n in range(30):
        context, tokens = rng.integers(0, 5, 6).tolist(), rng.integers(0, 5, 9).tolist()
        predicted = rng.integers(0, 5, 9).tolist() if n % 2 else None
        rows.append({"id": str(n), "context": context, "tokens": tokens, "predicted": predicted})
        for end in range(WINDOW, len(tokens) + (predicted is not None)):
            window = tokens[end - WINDOW : end]
            before = context + tokens[: end - 1] if predicted else context
            if any(before[i : i + WINDOW] == window for i in range(len(before) - WINDOW + 1)):
                left_out += 1
            else:
                pairs.append((*window, predicted[end - 1] if predicted else tokens[end]))
    finding = judge(pa.Table.from_pylist(rows, SCHEMA), parameters(bytes(32), placebo_keys=PLACEBO))
    assert finding.n == len(set(pairs))
    assert finding.effect["left_out_in_context"] == left_out
    assert finding.effect["repeated_pairs"] == len(pairs) - len(set(pairs))


def test_a_finding_is_judged_alike_again_from_parquet_and_json(tmp_path):
    key = bytes(range(32))
    table = closed_table(TEACHER.texts(1, 10, 40, Mark(key, "kgw", WINDOW)))
    first = judge(table, parameters(key))
    pq.write_table(table, tmp_path / "transcript.parquet")
    again = judge(pq.read_table(tmp_path / "transcript.parquet"), json.loads(json.dumps(first.parameters)))
    assert again == first
    other = judge(table, parameters(bytes(32), level="L1"))
    assert other.p_value > 1e-3
    assert other.level == "L1" and "in public" in other.rivals[0]
    assert len(set(placebo_keys(3)) | set(placebo_keys(4))) == 40


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "empty"),
        ([{"id": "a", "context": [], "tokens": [], "error": "429: come again"}], "come again"),
        ([{"id": "a", "context": [], "tokens": [1, 2]}], "fewer than 3 tokens"),
    ],
)
def test_where_nothing_can_be_counted_there_is_a_reason_and_no_p_value(rows, said):
    finding = judge(pa.Table.from_pylist(rows, SCHEMA), parameters(bytes(32)))
    assert said in str(finding.reason)
    assert (finding.p_value, finding.e_value, finding.n) == (None, None, 0)


def test_a_wrong_key_is_named_and_not_repeated():
    with pytest.raises(UsageError, match="64 hexadecimal digits") as caught:
        judge(closed_table([[1, 2, 3]]), parameters(b"secret"))
    assert b"secret".hex() not in str(caught.value)


@pytest.fixture(scope="module")
def weights(tiny_teacher) -> Weights:
    return load_weights(str(tiny_teacher))


LOG = [
    Delivered(
        "a", ({"role": "user", "content": "what matters?"},), "a small model learns from it", Sampling(), "x"
    ),
    Delivered("b", (), "some answers are right while others only sound as if they were", Sampling()),
    Delivered(
        "c", ({"role": "user", "content": "what matters?"},), "every question has an answer", Sampling()
    ),
]


def test_open_mode_writes_down_the_suspects_likeliest_tokens(weights, monkeypatch):
    monkeypatch.setattr(
        "stillhouse.trace.detectors.radioactivity.observe.FORWARD_TOKENS", 64
    )  # more than one pass, with padding
    done = []
    table = observe_open(weights, LOG, weights.tokenizer, progress=done.append)
    assert sum(done) == 3
    for row, delivered in zip(table.to_pylist(), LOG, strict=True):
        assert row["tokens"] == weights.tokenizer.encode(delivered.output, add_special_tokens=False)
        assert (row["account"], row["text"]) == (delivered.account, delivered.output)
        assert bool(row["context"]) == bool(delivered.prompt)
        for place in range(len(row["tokens"])):
            ids = torch.tensor([row["context"] + row["tokens"][: place + 1]])
            assert row["predicted"][place] == int(weights.model(ids).logits[0, -1].argmax())
    assert judge(table, parameters(bytes(32))).n > 10


def test_open_mode_refuses_another_tokenizer_and_says_what_works(weights):
    table = observe_open(weights, LOG, load_tokenizer("embedded:smollm2")[0])
    finding = judge(table, parameters(bytes(32)))
    assert finding.p_value is None
    assert "Closed mode works with any" in str(finding.reason)


class Answering:
    """A suspect that does not answer one of the prompts."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, requests):
        self.asked += requests
        texts = [request.messages[-1]["content"] for request in requests]
        return [
            ModelError("no") if text == "1" else Reply(f"the {text} is an answer", None, "stop", 1, 4)
            for text in texts
        ]


def test_closed_mode_asks_each_prompt_once_and_keeps_what_went_wrong(weights):
    rows = [
        Delivered(str(n), ({"role": "user", "content": str(n % 5)},), "irrelevant", Sampling())
        for n in range(9)
    ]
    suspect = Answering()
    table = observe_closed(suspect, rows, weights.tokenizer, sampling=Sampling(max_tokens=7), seed=2)
    assert len({request.sampling.seed for request in suspect.asked}) == len(suspect.asked) == len(table) == 5
    assert all(request.sampling.max_tokens == 7 for request in suspect.asked)
    for number, row in enumerate(table.to_pylist()):
        assert row["error"] == ("no" if number == 1 else None)
        assert row["text"] == (None if number == 1 else f"the {number} is an answer")
        if number != 1:
            assert weights.tokenizer.decode(row["tokens"]) == row["text"]
    finding = judge(table, parameters(bytes(32)))
    assert finding.assumptions[-1].held is False
    assert "4 of 5" in finding.assumptions[-1].evidence
    alone = observe_closed(suspect, LOG[1:2], weights.tokenizer)
    assert "nothing to ask" in str(judge(alone, parameters(bytes(32))).reason)


def test_a_closed_transcript_is_made_from_anybodys_answers(weights):
    table = closed_transcript(LOG[:1], ["some answers are right"], weights.tokenizer)
    assert table.schema == SCHEMA
    assert weights.tokenizer.decode(table["context"][0].as_py()) == "what matters?"


def test_accounts_that_asked_the_same_have_a_transcript_each(weights):
    prompt = ({"role": "user", "content": "what matters?"},)
    rows = [Delivered(str(n), prompt, "irrelevant", Sampling(), account) for n, account in enumerate("xxy")]
    table = observe_closed(Answering(), rows, weights.tokenizer)
    assert table["account"].to_pylist() == ["x", "y"]
