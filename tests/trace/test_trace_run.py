"""A trace with real models of a few thousand weights: asked once, gone on with, asked again."""

import asyncio
import json

import pyarrow as pa
import pytest

from stillhouse.errors import CorpusError, IntegrityError
from stillhouse.models import Request, Sampling, fingerprint_of, open_model
from stillhouse.trace import run
from stillhouse.trace.bundle.files import read_transcript, transcript_path
from stillhouse.trace.detectors.canaries import make_canaries, write_canaries
from stillhouse.trace.plan import PlannedTests, TeacherPlan, TracePlan, TrainingOrder
from stillhouse.trace.rerun import rerun_bundle, table_difference
from stillhouse.trace.resample import read_resamples
from stillhouse.trace.run import run_trace
from stillhouse.trace.verify import verify_bundle
from stillhouse.watermark import Mark

OUTPUTS = 24


@pytest.fixture(scope="module")
def log(tmp_path_factory, tiny_teacher):
    """What the tiny teacher told two accounts."""
    path = tmp_path_factory.mktemp("delivered") / "log.jsonl"
    model = open_model(str(tiny_teacher))
    prompts = [[{"role": "user", "content": f"question {number}"}] for number in range(OUTPUTS)]
    requests = [Request(str(n), prompt, Sampling(max_tokens=40, seed=n)) for n, prompt in enumerate(prompts)]
    replies = asyncio.run(model.generate(requests))
    asyncio.run(model.close())
    rows = [
        {
            "id": f"r{number}",
            "messages": [*prompt, {"role": "assistant", "content": reply.text}],
            "max_tokens": 40,
            "account": ("acme", "zeta")[number % 2],
            "teacher_hash": fingerprint_of(str(tiny_teacher)),
        }
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(log, teacher, **changes):
    texts = log.parent / "order.jsonl"
    texts.write_text("".join(json.dumps({"text": f"a training text, number {n}"}) + "\n" for n in range(12)))
    ours = TeacherPlan(
        name="ours", model=str(teacher), log=str(log), accounts=("acme",), placebo_accounts=("zeta",)
    )
    tests = PlannedTests(style=None, training_order=TrainingOrder(texts=str(texts)))
    fields = {"suspect": str(teacher), "teachers": (ours,), "tests": tests, "placebos": 3}
    return TracePlan(**fields | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, log, tiny_teacher):
    directory = tmp_path_factory.mktemp("run") / "evidence"
    return directory, run_trace(plan_of(log, tiny_teacher), directory, command="still trace")


def test_what_the_access_allows_is_run_and_the_rest_is_explained(finished):
    directory, evidence = finished
    (teacher,) = evidence.teachers
    parts = {part.test: part for part in teacher.tests}
    assert {name for name, part in parts.items() if part.hindrance} == {"radioactivity", "canaries"}
    assert parts["exchangeable"].finding.n > 5
    assert parts["weights"].finding.p_value < 1e-6, "the suspect is the teacher's own file"
    assert parts["identity"].finding.p_value is None
    accounts = set(
        read_transcript(directory / transcript_path("ours", "exchangeable"))["account"].to_pylist()
    )
    assert accounts == {"acme", "zeta"}
    assert evidence.commitments.in_time and teacher.verdict.outcome == "inconclusive"
    assert verify_bundle(directory).differences == []


def test_asked_again_the_models_say_the_same_bit_for_bit(finished):
    directory, _ = finished
    result = verify_bundle(directory)
    rerun_bundle(directory, result)
    assert result.differences == []
    assert result.notes == ["not signed: anyone with the files could have changed all of them together"]


def test_the_same_command_asks_nothing_twice(finished, log, tiny_teacher, monkeypatch):
    directory, before = finished
    monkeypatch.setattr(run, "write_observation", lambda *_: pytest.fail("asked again"))
    after = run_trace(plan_of(log, tiny_teacher), directory)
    assert after.teachers == before.teachers


def test_a_trace_that_was_stopped_goes_on_with_what_is_missing(tmp_path, log, tiny_teacher, monkeypatch):
    directory, asked, whole = tmp_path / "evidence", [], run.write_observation

    def stopping(detector, case, path):
        asked.append(detector.name)
        if detector.name == "identity" and asked.count("identity") == 1:
            raise KeyboardInterrupt
        whole(detector, case, path)

    monkeypatch.setattr(run, "write_observation", stopping)
    plan = plan_of(log, tiny_teacher)
    with pytest.raises(KeyboardInterrupt):
        run_trace(plan, directory)
    assert not (directory / "evidence.json").exists()
    run_trace(plan, directory)
    assert asked == ["exchangeable", "identity", "identity", "weights", "training_order"]
    assert verify_bundle(directory).differences == []


def test_another_plan_in_the_same_directory_is_refused(finished, log, tiny_teacher):
    directory, _ = finished
    with pytest.raises(IntegrityError, match="the plan is not the one that was committed"):
        run_trace(plan_of(log, tiny_teacher, hard=10.0), directory)


def test_two_teachers_each_need_twice_as_much(tmp_path, log, tiny_teacher):
    (ours,) = plan_of(log, tiny_teacher).teachers
    theirs = TeacherPlan(**vars(ours) | {"name": "theirs"})
    tests = PlannedTests(radioactivity=None, canaries=None, style=None, identity=None, weights=None)
    plan = plan_of(log, tiny_teacher, teachers=(ours, theirs), tests=tests)
    evidence = run_trace(plan, tmp_path / "evidence")
    assert [teacher.rungs[0].needed for teacher in evidence.teachers] == [2000.0, 2000.0]
    assert "Teacher theirs" in (tmp_path / "evidence/report.html").read_text()
    assert verify_bundle(tmp_path / "evidence").differences == []


def test_secret_tests_run_with_their_placebos_and_are_opened(tmp_path, log, tiny_teacher):
    """A watermark's key and canaries of a teacher that used neither: asked, judged, opened, verified."""
    key, canaries = tmp_path / "acme.hex", tmp_path / "canaries.jsonl"
    key.write_text("5a" * 32 + "\n")
    write_canaries(canaries, make_canaries(b"k" * 16, "acme", 2, decoys=3))
    (ours,) = plan_of(log, tiny_teacher).teachers
    secret = TeacherPlan(**vars(ours) | {"watermark_key": str(key), "canaries": str(canaries)})
    tests = PlannedTests(exchangeable=None, style=None, identity=None, weights=None)
    plan = plan_of(log, tiny_teacher, teachers=(secret,), tests=tests)
    directory = tmp_path / "evidence"
    (teacher,) = run_trace(plan, directory).teachers
    marked, given = teacher.tests
    assert [placebo.name for placebo in marked.placebos] == ["account zeta", "key 1", "key 2", "key 3"]
    assert marked.finding.parameters["key"] == "5a" * 32 and given.finding.n == 2
    assert teacher.rungs[-1].tests == ["radioactivity", "canaries"]
    result = verify_bundle(directory)
    rerun_bundle(directory, result)
    assert result.differences == []
    assert {path.name for path in (directory / "opened").iterdir()} == {"ours.watermark_key", "ours.canaries"}


def test_the_resamples_of_a_marked_log_are_drawn_with_its_mark(tmp_path, log, tiny_teacher):
    key = tmp_path / "acme.hex"
    key.write_text("5a" * 32 + "\n")
    (ours,) = plan_of(log, tiny_teacher).teachers
    marked = TeacherPlan(**vars(ours) | {"watermark_key": str(key), "placebo_accounts": ()})
    tests = PlannedTests(canaries=None, style=None, identity=None, weights=None)
    directory = tmp_path / "evidence"
    (teacher,) = run_trace(plan_of(log, tiny_teacher, teachers=(marked,), tests=tests), directory).teachers
    assert [part.test for part in teacher.tests if part.hindrance is None] == [
        "exchangeable",
        "radioactivity",
    ]
    drawn = directory / "resamples/ours.parquet"
    assert read_resamples(drawn).marks == (Mark(b"Z" * 32).public_parameters,)
    assert "resamples carry the watermark" in (directory / "report.html").read_text()
    assert verify_bundle(directory).differences == []
    # The same file, handed in, is known by the mark that it carries; under another key it is not.
    given = TeacherPlan(**vars(marked) | {"resamples": str(drawn)})
    plan = plan_of(log, tiny_teacher, teachers=(given,), tests=tests)
    assert run._resamples_are_marked(plan, given)
    of_key = plan_of(log, tiny_teacher, teachers=(given,), tests=PlannedTests(radioactivity=None))
    assert run._resamples_are_marked(of_key, given), "without a planned kind of mark the key tells"
    key.write_text("5b" * 32 + "\n")
    assert not run._resamples_are_marked(plan, given)
    assert not run._resamples_are_marked(of_key, given)


def test_a_log_of_another_version_is_refused(tmp_path, log, tiny_teacher):
    other = tmp_path / "log.jsonl"
    other.write_text(log.read_text().replace(fingerprint_of(str(tiny_teacher)), "f" * 64))
    with pytest.raises(IntegrityError, match="was written by"):
        run_trace(plan_of(other, tiny_teacher), tmp_path / "evidence")


def test_an_account_that_the_log_does_not_know_is_named(tmp_path, log, tiny_teacher):
    plan = plan_of(log, tiny_teacher)
    teacher = TeacherPlan(**vars(plan.teachers[0]) | {"placebo_accounts": ("nobody",)})
    with pytest.raises(CorpusError, match="nobody"):
        run_trace(plan_of(log, tiny_teacher, teachers=(teacher,)), tmp_path / "evidence")


def test_asking_again_refuses_another_log_than_was_tested(tmp_path, log, tiny_teacher):
    mine = tmp_path / "log.jsonl"
    mine.write_text(log.read_text())
    tests = PlannedTests(radioactivity=None, canaries=None, style=None, identity=None, weights=None)
    run_trace(plan_of(mine, tiny_teacher, tests=tests), tmp_path / "evidence")
    mine.write_text(log.read_text() + "\n")
    with pytest.raises(CorpusError, match="is not the log that was tested"):
        rerun_bundle(tmp_path / "evidence", verify_bundle(tmp_path / "evidence"))


def test_how_tables_differ_is_said_in_words():
    table = pa.table({"text": ["a", "b"], "loglik": [1.0, None], "n": [1, 2]})
    assert table_difference(table, table) is None
    changed = pa.table({"text": ["a", "c"], "loglik": [1.25, None], "n": [1, 2]})
    found = "text differs in 1 of 2 rows; loglik differs in 1 of 2 rows, at most by 0.25"
    assert table_difference(table, changed) == found
    assert table_difference(table, table.slice(1)) == "there are 1 rows instead of 2"
    assert table_difference(table, table.drop_columns("n")) == "the columns differ"
