"""`still trace` and its subcommands: options, exit statuses, output."""

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.cli.trace import TraceSubject, _plan
from stillhouse.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent.parent / "trace"))
from made_bundle import make_bundle, write_log


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tiny_teacher):
    directory = tmp_path_factory.mktemp("command") / "evidence"
    make_bundle(directory, tiny_teacher)
    return directory


def test_verify_says_what_it_checked(bundle, capsys):
    assert main(["trace", "verify", str(bundle)]) == 0
    out, err = capsys.readouterr()
    assert "numbers recomputed" in out and "ours: Hard evidence at level L2" in out
    assert "warning: not signed" in err
    assert main(["trace", "verify", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["differences"] == [] and told["verdicts"] == {"ours": "Hard evidence at level L2"}


def test_verify_names_what_differs_and_exits_with_one(bundle, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / "evidence")
    transcript = copy / "transcripts/ours/exchangeable.parquet"
    data = bytearray(transcript.read_bytes())
    data[len(data) // 2] ^= 1
    transcript.write_bytes(bytes(data))
    assert main(["trace", "verify", str(copy)]) == 1
    assert "transcripts/ours/exchangeable.parquet has other content than recorded" in capsys.readouterr().err
    assert main(["trace", "verify", str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"]
    assert main(["trace", "verify", str(tmp_path)]) == 2
    assert "contains no evidence.json" in capsys.readouterr().err


def test_key_prints_the_public_half_only(tmp_path, capsys):
    path = tmp_path / "signing.pem"
    assert main(["trace", "key", str(path)]) == 0
    public = capsys.readouterr().out.strip()
    assert len(bytes.fromhex(public)) == 32 and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["trace", "key", str(path)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_commit_prints_the_hash_to_publish(tmp_path, tiny_teacher, capsys):
    from stillhouse.hashing import sha256_file

    log = write_log(tmp_path / "log.jsonl", 40)
    given = ["--suspect", str(tiny_teacher), "--teacher", str(tiny_teacher), "--log", str(log)]
    assert main(["trace", "commit", *given, "--out", str(tmp_path / "e")]) == 0
    digest, path = capsys.readouterr().out.split()
    assert digest == sha256_file(path) and path == str(tmp_path / "e/commitments.json")


def test_options_become_teachers_with_names_of_their_own():
    asked = TraceSubject(suspect="s", teacher=("a/m.gguf", "b/m"), log=("x.parquet", "y.parquet"))
    plan = _plan(asked)
    assert [(t.name, t.model, t.log) for t in plan.teachers] == [
        ("m", "a/m.gguf", "x.parquet"),
        ("m-2", "b/m", "y.parquet"),
    ]
    (only_log,) = _plan(TraceSubject(suspect="s", log=("logs/x.parquet",), resamples=("r",))).teachers
    assert (only_log.name, only_log.model, only_log.resamples) == ("x", None, "r")
    assert _plan(TraceSubject(suspect="s", log=("l",), out=Path("runs/case-7"))).name == "case-7"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            TraceSubject(suspect="s", teacher=("a", "b"), log=("x",)),
            "2 teachers and 1 logs do not go together",
        ),
        (TraceSubject(suspect="s", log=("x", "y"), resamples=("r",)), "each --log needs its own --resamples"),
        (TraceSubject(suspect="s"), "no log was named"),
        (TraceSubject(log=("x",)), "no suspect was named"),
    ],
)
def test_what_does_not_fit_together_is_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        _plan(asked)


def test_resample_needs_a_draw(capsys):
    assert main(["trace", "resample", "--teacher", "t", "--log", "l", "--draws", "0"]) == 2
    assert "--draws must be at least 1" in capsys.readouterr().err
