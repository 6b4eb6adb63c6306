"""`still eval` with real models."""

import json

import pytest
from conftest import make_tiny_teacher

from stillhouse.cli import main


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return make_tiny_teacher(tmp_path_factory.mktemp("student") / "student", layers=2, seed=1)


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [
        {"prompt": f"{n} what the still takes?", "completion": "a large spirit " * n} for n in range(1, 7)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_model_is_measured_against_its_teacher(tiny_teacher, student, answers, capsys):
    arguments = ["eval", str(student), "--teacher", str(tiny_teacher), "--data", str(answers)]
    assert main([*arguments, "--no-speed", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    teacher, measured = report["models"]
    assert teacher["kl"]["value"] == 0
    assert measured["kl"]["value"] > 0
    assert report["held_out"]["documents"] == 6
    for model, place in ((teacher, tiny_teacher), (measured, student)):
        assert model["format"] == "safetensors"
        assert model["bytes"] == (place / "model.safetensors").stat().st_size


def test_conversations_without_an_answer_are_counted(tiny_teacher, answers, capsys):
    with answers.open("a") as file:
        file.write(json.dumps({"prompt": "and this?"}) + "\n")
    assert main(["eval", str(tiny_teacher), "--data", str(answers), "--no-speed"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 7 conversations have no answer" in said
    assert "Few documents: with 6 held-out documents the intervals are rough" in said


def test_of_a_run_the_student_is_named(tmp_path, answers, capsys):
    (tmp_path / "run/student").mkdir(parents=True)
    assert main(["eval", str(tmp_path / "run"), "--data", str(answers)]) == 2
    assert str(tmp_path / "run/student") in capsys.readouterr().err


def test_no_recipe_is_spoken_of(tiny_teacher, tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text('{"said": "x"}\n')
    assert main(["eval", str(tiny_teacher), "--data", str(tmp_path / "d.jsonl")]) == 1
    message = capsys.readouterr().err
    assert "prompts.column" not in message
    assert "`completion`" in message


def test_the_teacher_itself_is_at_no_distance(tiny_teacher, answers, capsys):
    arguments = ["eval", str(tiny_teacher), "--teacher", str(tiny_teacher), "--data", str(answers)]
    assert main([*arguments, "--limit", "3", "--no-speed", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["models"][1]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert report["models"][1]["agreement"]["value"] == 1
    assert report["held_out"]["documents"] == 3


@pytest.mark.parametrize("option", [("--limit", "-1"), ("--limit", "0"), ("--max-length", "1")])
def test_numbers_that_measure_something_else_are_refused(tmp_path, option, capsys):
    assert main(["eval", str(tmp_path), *option]) == 2
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000], ids=lambda text: text[:2])
def test_a_damaged_report_is_an_error(tmp_path, text, capsys):
    (tmp_path / "report.json").write_text(text)
    assert main(["eval", str(tmp_path)]) == 2
    assert "report.json" in capsys.readouterr().err


def test_a_report_of_an_earlier_version_is_judged_again(tmp_path, capsys):
    estimate = {"value": 2.0, "low": 1.5, "high": 2.5, "documents": 9, "confidence": 0.95}
    lost = {"kl": None, "agreement": None, "nll": estimate}
    student = {"key": "student", "kl": None, "agreement": None, "perplexity": estimate, "bytes": 5_000_000}
    report = {
        "held_out": {"documents": 9, "tokens": 900},
        "models": [student | {"tokens_per_s": None}],
        "comparison": {"before": lost},
        "verdict": {"outcome": "better", "against": "control", "headline": "Praise", "sentence": "Praise."},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main(["eval", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "Training made the student worse: it gives the text a lower likelihood." in captured.out
    assert "NLL nats/token" in captured.out and "+2.00 [+1.50, +2.50]" in captured.out
    assert "Praise" not in captured.out
    assert "judged again" in captured.err


def test_prompts_without_answers_are_no_text_to_measure_on(tiny_teacher, questions, capsys):
    assert main(["eval", str(tiny_teacher), "--data", str(questions)]) == 1
    assert "no conversation ends with the assistant's turn" in capsys.readouterr().err
