"""Arguments of the verbs, and the directories of runs."""

import json
import os
import shutil

import pytest

from stillhouse.cli import main
from stillhouse.cli.overrides import gather_overrides
from stillhouse.errors import UsageError
from stillhouse.files import take_lock
from stillhouse.provenance import Manifest, all_terms
from stillhouse.recipe.load import dump_recipe, load_recipe

RECIPE = (
    "name: first\nteacher: {model: embedded:smollm2}\nprompts: {source: package:mmlu}\nstudent: {model: m}\n"
)
ESTIMATE = {"value": 2.0, "low": 1.5, "high": 2.5, "documents": 9, "confidence": 0.95}
REPORT = {
    "held_out": {"documents": 9, "tokens": 900},
    "models": [
        {
            "key": "student",
            "kl": ESTIMATE,
            "agreement": None,
            "perplexity": ESTIMATE,
            "bytes": 5_000_000,
            "tokens_per_s": None,
        }
    ],
    "verdict": {"sentence": "It is better."},
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A valid recipe r.yaml in an empty working directory, and the recorded calls of the pipeline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    asked = []

    def pipeline_run(recipe, directory, *, until=None, on_stage=None):
        asked.append((recipe, str(directory), until))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "recipe.yaml").write_text(dump_recipe(recipe))
        (directory / "work").touch()
        manifest = Manifest.load(directory)
        for stage in ("terms", "collect", "filter", "student", "targets", "train", "control", "evaluate"):
            manifest.record(stage, {}, [], {})
        return REPORT if until is None else {"kept": 7}

    monkeypatch.setattr("stillhouse.pipeline.run", pipeline_run)
    return asked


class TestOverrides:
    @pytest.mark.parametrize(
        ("tokens", "gathered"),
        [
            (["run", "r", "--train.epochs", "2"], ["run", "r", "--section.field=train.epochs=2"]),
            (["run", "--a.b=c=d", "r"], ["run", "--section.field=a.b=c=d", "r"]),
            (["plan", "r", "--seed", "-1", "--json"], ["plan", "r", "--section.field=seed=-1", "--json"]),
            (["run", "r", "--train.batch-tokens", "9"], ["run", "r", "--section.field=train.batch_tokens=9"]),
            (["run", "r", "--accept-terms", "why"], ["run", "r", "--accept-terms", "why"]),
            (["run", "r", "--accept-terms=why"], ["run", "r", "--accept-terms=why"]),
            (["run", "r", "--accept_terms", "null"], ["run", "r", "--section.field=accept_terms=null"]),
            (["run", "r", "--", "--a.b", "c"], ["run", "r", "--", "--a.b", "c"]),
            (["terms", "--purpose", "personal"], ["terms", "--purpose", "personal"]),
            (["eval", "m", "--a.b", "c"], ["eval", "m", "--a.b", "c"]),
            ([], []),
        ],
    )
    def test_they_become_one_option(self, tokens, gathered):
        assert gather_overrides(tokens) == gathered

    def test_one_without_a_value_is_refused(self):
        with pytest.raises(UsageError, match=r"--train\.epochs needs a value"):
            gather_overrides(["run", "r", "--train.epochs"])

    def test_they_reach_the_recipe(self, calls):
        arguments = [
            "--train.epochs",
            "2",
            "--student.lora.rank=8",
            "--seed",
            "3",
            "--accept-terms",
            "mine: yes",
        ]
        assert main(["run", "r.yaml", *arguments]) == 0
        recipe = calls[0][0]
        assert (recipe.train.epochs, recipe.seed, recipe.accept_terms) == (2.0, 3, "mine: yes")
        assert recipe.student.lora.rank == 8

    def test_null_for_the_recipes_key_is_no_acceptance(self, calls):
        assert main(["run", "r.yaml", "--accept_terms", "null"]) == 0
        assert calls[0][0].accept_terms is None

    @pytest.mark.parametrize("reason", ["", " ", "null", "None", "~"])
    def test_an_acceptance_without_a_reason_is_refused(self, calls, capsys, reason):
        assert main(["run", "r.yaml", "--accept-terms", reason]) == 2
        assert "gives no reason" in capsys.readouterr().err
        assert calls == []


class TestStages:
    @pytest.mark.parametrize(
        ("verb", "until"), [("run", None), ("collect", "filter"), ("train", "on_policy")]
    )
    def test_each_verb_runs_as_far_as_it_says(self, calls, verb, until):
        assert main([verb, "r.yaml"]) == 0
        assert calls == [(load_recipe("r.yaml"), "runs/first", until)]

    def test_a_run_prints_its_table(self, calls, capsys):
        assert main(["run", "r.yaml", "--out", "elsewhere"]) == 0
        captured = capsys.readouterr()
        assert "2.00 [1.50–2.50]" in captured.out
        assert "It is better." in captured.out
        assert "elsewhere/report.html" in captured.err

    def test_json_is_all_that_stdout_has(self, calls, capsys):
        assert main(["run", "r.yaml", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == REPORT
        assert main(["collect", "r.yaml", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"directory": "runs/first", "kept": 7}


class TestRunDirectory:
    def test_the_same_recipe_resumes(self, calls, capsys):
        assert main(["run", "r.yaml"]) == 0
        assert main(["run", "r.yaml"]) == 0
        assert len(calls) == 2
        assert "resuming runs/first" in capsys.readouterr().err

    def test_another_recipe_is_refused_with_what_differs(self, calls, capsys, tmp_path):
        assert main(["run", "r.yaml"]) == 0
        assert main(["run", "r.yaml", "--seed", "5", "--train.epochs", "2"]) == 2
        message = capsys.readouterr().err
        assert "train.epochs: 1.0 there, 2.0 now" in message
        assert "seed: 0 there, 5 now" in message
        assert "--restart" in message
        assert len(calls) == 1

    def test_many_differences_are_counted(self, calls, capsys):
        assert main(["run", "r.yaml"]) == 0
        changes = [
            f"--collect.{key}=3" for key in ("samples", "max_tokens", "top_k", "top_logprobs", "temperature")
        ]
        assert main(["run", "r.yaml", "--seed", "5", "--train.epochs", "2", *changes]) == 2
        assert "and 2 more" in capsys.readouterr().err

    def test_what_no_finished_stage_depends_on_may_change(self, calls, capsys):
        assert main(["run", "r.yaml"]) == 0
        changes = ["--evaluate.prompts", "2", "--train.checkpoint_every", "7", "--collect.concurrency", "3"]
        assert main(["run", "r.yaml", *changes]) == 0
        said = capsys.readouterr().err
        assert "resuming runs/first; changed: collect.concurrency: 16 before, 3 now" in said
        assert len(calls) == 2

    def test_a_teacher_that_never_answered_leaves_nothing_in_the_way(self, calls, tmp_path):
        collected = tmp_path / "runs/first/corpus/collected"
        collected.mkdir(parents=True)
        (tmp_path / "runs/first/recipe.yaml").write_text(RECIPE + "seed: 7\n")
        for name in (".lock", "failures.jsonl", "journal-000000.jsonl"):
            (collected / name).touch()
        assert main(["run", "r.yaml"]) == 0
        assert len(calls) == 1

    @pytest.mark.parametrize("answers", ["journal-000000.jsonl", "shard-000000.parquet"])
    def test_answers_are_not_mixed_with_those_of_another_recipe(self, calls, capsys, tmp_path, answers):
        collected = tmp_path / "runs/first/corpus/collected"
        collected.mkdir(parents=True)
        (tmp_path / "runs/first/recipe.yaml").write_text(RECIPE + "seed: 7\n")
        (collected / answers).write_text("{}\n")
        assert main(["run", "r.yaml"]) == 2
        assert "seed: 7 there, 0 now" in capsys.readouterr().err

    def test_restart_moves_the_old_run_aside_and_deletes_nothing(self, calls, tmp_path):
        for _ in range(3):
            assert main(["run", "r.yaml", "--restart", "--seed", "5"]) == 0
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first", "first.1", "first.2"]
        assert (tmp_path / "runs/first.1/work").exists()

    def test_a_run_that_is_going_on_is_not_moved_aside(self, calls, capsys, tmp_path):
        assert main(["run", "r.yaml"]) == 0
        lock = take_lock(tmp_path / "runs/first")
        try:
            assert main(["run", "r.yaml", "--restart"]) == 1
        finally:
            os.close(lock)
        assert "another process is writing" in capsys.readouterr().err
        assert len(calls) == 1

    @pytest.mark.parametrize("place", [".", "../run", ".."])
    def test_restart_does_not_move_the_working_directory(self, calls, capsys, tmp_path, monkeypatch, place):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/work").touch()
        monkeypatch.chdir(tmp_path / "run")
        assert main(["run", "../r.yaml", "--out", place, "--restart"]) == 2
        assert "while you are in it" in capsys.readouterr().err

    def test_restart_through_a_link_leaves_the_old_run_where_it_is(self, calls, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "link").symlink_to("run")
        assert main(["run", "r.yaml", "--out", "link"]) == 0
        assert main(["run", "r.yaml", "--out", "link", "--restart"]) == 0
        assert (tmp_path / "run/work").exists()
        assert (tmp_path / "link.1").readlink().name == "run"
        assert not (tmp_path / "link").is_symlink()

    def test_a_directory_whose_name_is_too_long(self, calls, capsys):
        assert main(["run", "r.yaml", "--out", "a" * 300]) == 1
        assert "File name too long" in capsys.readouterr().err

    def test_a_run_that_was_refused_before_it_began_does_not_stand_in_the_way(self, calls, tmp_path):
        (tmp_path / "runs/first").mkdir(parents=True)
        (tmp_path / "runs/first/recipe.yaml").write_text(RECIPE + "seed: 7\n")
        assert main(["run", "r.yaml"]) == 0

    def test_what_is_no_run_is_left_alone(self, calls, capsys, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis/chapter").touch()
        assert main(["run", "r.yaml", "--out", "thesis"]) == 2
        assert "thesis is not empty and is not a run" in capsys.readouterr().err
        assert main(["run", "r.yaml", "--out", "r.yaml"]) == 2
        assert "r.yaml is a file" in capsys.readouterr().err
        assert calls == []

    def test_a_run_of_a_recipe_that_is_no_longer_sound(self, calls, capsys, tmp_path):
        (tmp_path / "runs/first").mkdir(parents=True)
        (tmp_path / "runs/first/recipe.yaml").write_text(RECIPE + "bogus: 7\n")
        (tmp_path / "runs/first/work").touch()
        assert main(["run", "r.yaml"]) == 2
        assert "recipe.yaml:5: bogus: unknown key" in capsys.readouterr().err


class TestTerms:
    def test_all_are_listed(self, capsys):
        assert main(["terms"]) == 0
        text = capsys.readouterr().out
        assert all(entry.key in text for entry in all_terms())
        assert max(map(len, text.splitlines())) <= 80

    def test_one_is_explained(self, capsys):
        assert main(["terms", "embedded:smollm2"]) == 0
        text = capsys.readouterr().out
        assert "for research" in text
        assert "Apache-2.0" in text

    @pytest.mark.parametrize(
        ("model", "purpose", "status"),
        [
            ("hub:databricks/dbrx-instruct", "research", 3),
            ("hub:Qwen/Qwen2.5-3B", "commercial", 3),
            ("hub:Qwen/Qwen2.5-3B", "research", 0),
            (
                "hub:someone/great-model",
                "research",
                3,
            ),  # a run with it is refused too, until a reason is given
            ("embedded:smollm2", "competing", 0),
        ],
    )
    def test_a_refused_purpose_is_an_exit_status(self, model, purpose, status, capsys):
        assert main(["terms", model, "--purpose", purpose]) == status
        shown = capsys.readouterr()
        assert f"for {purpose}" in shown.out
        assert bool(shown.err) == (status == 3)
        assert main(["terms", model]) == 0, "without a purpose it only informs"

    def test_the_card_of_a_hub_model_in_the_cache_is_read(self, tmp_path, monkeypatch, capsys):
        """Only the card is here, as after `hf download org/name README.md`."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        folder = tmp_path / "models--someone--great-model"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        (snapshot / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Great\n")
        assert main(["terms", "hub:someone/great-model", "--purpose", "commercial", "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["key"] == "cc-by-nc-4.0"

    def test_unknown_ones_say_what_to_do(self, capsys):
        assert main(["terms", "unknown"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "Declare the terms yourself" in text
        assert "free to choose" not in text

    @pytest.mark.parametrize(
        ("word", "meant"),
        [
            ("apache2.0", "apache-2.0"),
            ("gema", "gemma"),
            ("smolm2", "embedded:smollm2"),
            ("embeded:smollm2", "embedded:smollm2"),
        ],
    )
    def test_a_misspelt_word(self, word, meant, capsys):
        assert main(["terms", word]) == 0
        assert f"Did you mean {meant}?" in capsys.readouterr().err.replace("`", "")

    def test_a_model_by_its_name_is_no_misspelling(self, capsys):
        assert main(["terms", "nobody/knows-this"]) == 0
        assert "Did you mean" not in capsys.readouterr().err

    def test_json(self, capsys):
        assert main(["terms", "gemma", "--json"]) == 0
        explained = json.loads(capsys.readouterr().out)
        assert explained["key"] == "gemma"
        assert set(explained["verdicts"]) == {"research", "personal", "commercial", "competing"}
        assert main(["terms", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len(all_terms())


class TestVerify:
    @pytest.fixture
    def run_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run = tmp_path / "runs" / "first"
        (run / "student").mkdir(parents=True)
        (run / "recipe.yaml").write_text(RECIPE)
        for name in ("a.bin", "b.bin"):
            (run / "student" / name).write_text(name)
        Manifest.load(run).record("train", {}, [run / "student/a.bin", run / "student/b.bin"], {})
        return run

    def test_a_run_that_finished_no_stage_is_no_success(self, run_directory, capsys):
        manifest = json.loads((run_directory / "manifest.json").read_text())
        (run_directory / "manifest.json").write_text(json.dumps({**manifest, "stages": {}}))
        assert main(["verify", "runs/first"]) == 2
        assert "nothing to check" in capsys.readouterr().err

    def test_a_run_without_a_student_says_how_to_go_on(self, run_directory, capsys):
        shutil.rmtree(run_directory / "student")
        assert main(["export", "runs/first", "--to", "gguf"]) == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert "has no student yet" in shown and "still run runs/first/recipe.yaml" in shown

    def test_what_is_as_recorded(self, run_directory, capsys):
        assert main(["verify", "runs/first"]) == 0
        assert capsys.readouterr().out == "runs/first: 2 files match the manifest\n"
        assert main(["verify", "runs/first", "--json"]) == 0
        expected = {"directory": "runs/first", "checked": 2, "differences": []}
        assert json.loads(capsys.readouterr().out) == expected

    def test_what_is_not(self, run_directory, capsys):
        (run_directory / "student/b.bin").write_text("changed")
        assert main(["verify", "runs/first"]) == 1
        message = capsys.readouterr().err
        assert "student/b.bin" in message
        assert "a.bin" not in message

    def test_all_that_is_not_is_listed(self, run_directory, capsys):
        names = [f"{n:02d}.bin" for n in range(25)]
        for name in names:
            (run_directory / name).write_text(name)
        Manifest.load(run_directory).record("card", {}, [run_directory / name for name in names], {})
        for name in names:
            (run_directory / name).unlink()
        assert main(["verify", "runs/first"]) == 1
        message = capsys.readouterr().err
        assert message.count("bin is missing") == 20
        assert "and 5 more" in message
        assert main(["verify", "runs/first", "--json"]) == 1
        answer = json.loads(capsys.readouterr().out)
        assert len(answer["differences"]) == 25
        assert answer["status"] == 1


def test_eval_of_a_finished_run_prints_what_it_measured(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    assert main(["eval", str(tmp_path)]) == 0
    assert "2.00 [1.50–2.50]" in capsys.readouterr().out
