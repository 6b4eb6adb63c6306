"""Bundles: that what is written can be checked, and that nothing in it can be changed unnoticed."""

import shutil
import stat
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from made_bundle import make_bundle, make_plan, scores, write_log

from stillhouse.errors import IntegrityError, StorageError, UsageError
from stillhouse.files import read_json, write_json
from stillhouse.hashing import sha256_file
from stillhouse.trace import run
from stillhouse.trace.bundle.commitments import commit, make_commitments, read_commitments, secret_files
from stillhouse.trace.bundle.files import read_evidence, transcript_path, write_transcript
from stillhouse.trace.bundle.schema import Evidence, evidence_text
from stillhouse.trace.bundle.signing import make_key, read_key, require_signature
from stillhouse.trace.detectors.exchangeable.detector import relabel_resample_as_delivered
from stillhouse.trace.plan import TeacherPlan
from stillhouse.trace.verify import verify_bundle


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "signing.pem"
    public = make_key(path)
    return path, public


@pytest.fixture(scope="module")
def signed(tmp_path_factory, tiny_teacher, key):
    directory = tmp_path_factory.mktemp("signed") / "evidence"
    make_bundle(directory, tiny_teacher, key=read_key(key[0]))
    return directory


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory, tiny_teacher):
    directory = tmp_path_factory.mktemp("unsigned") / "evidence"
    make_bundle(directory, tiny_teacher, used=0.0)
    return directory


@pytest.fixture
def copy(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "evidence")


@pytest.fixture
def bare(unsigned, tmp_path):
    return shutil.copytree(unsigned, tmp_path / "evidence")


def test_a_signed_bundle_verifies_and_says_what_it_found(signed, key):
    result = verify_bundle(signed, public_key=key[1])
    assert (result.differences, result.notes) == ([], [])
    assert result.numbers > 100 and result.checked == len(result.evidence.files) + 1
    assert result.evidence.teachers[0].verdict.headline == "Hard evidence at level L2"


def test_verifying_loads_no_model_library(signed):
    code = (
        "import sys; from pathlib import Path; from stillhouse.trace.verify import verify_bundle; "
        "assert not verify_bundle(Path(sys.argv[1])).differences; "
        "print([name for name in ('torch', 'transformers', 'xllamacpp') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(signed)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_nothing_used_gives_no_claim_and_placebos_never_do(unsigned, signed):
    assert read_evidence(unsigned).teachers[0].verdict.outcome == "inconclusive"
    for directory in (unsigned, signed):
        (part,) = read_evidence(directory).teachers[0].tests
        assert len(part.placebos) == 21 and part.placebos[0].name == "account other"
        assert all(placebo.e_value < 100 for placebo in part.placebos)


def test_one_byte_of_any_file_is_noticed_and_named(copy, key):
    """Every file, at its beginning, middle and end."""
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) == 6
    for path in files:
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            try:
                found = verify_bundle(copy).differences
            except IntegrityError as error:
                found = [str(error)]
            assert found, f"{path.name}, byte {place}"
            assert any(path.name in line for line in found), found
        path.write_bytes(data)
    assert verify_bundle(copy).differences == []


def test_missing_and_added_files_are_named(copy):
    (copy / "note.txt").write_text("hello")
    (copy / "report.html").unlink()
    found = verify_bundle(copy).differences
    assert "report.html is missing" in found and "note.txt is not recorded in the evidence" in found


def test_a_signature_taken_away_or_replaced_is_noticed(copy, key, tmp_path):
    other = make_key(tmp_path / "other.pem")
    (copy / "signature.json").unlink()
    assert verify_bundle(copy).differences == [
        "signature.json is missing, but the evidence says that it is signed"
    ]
    data = (copy / "evidence.json").read_bytes()
    forged = {"schema_version": 1, "algorithm": "Ed25519", "file": "evidence.json"}
    forged |= {"public_key": other, "signature": read_key(tmp_path / "other.pem").sign(data).hex()}
    write_json(copy / "signature.json", forged)
    assert verify_bundle(copy).differences == [
        "signature.json does not belong to the key that the evidence names"
    ]


def test_unsigned_evidence_says_so_and_is_refused_where_a_signer_is_expected(bare, key):
    result = verify_bundle(bare)
    assert result.differences == [] and result.notes[0].startswith("not signed")
    assert verify_bundle(bare, public_key=key[1]).differences == [
        f"the evidence is not signed; the required signer is {key[1]}"
    ]


def rewrite(directory, change):
    """Changes the evidence as a forger without a key would: all hashes made to fit again."""
    values = read_json(directory / "evidence.json")
    change(values)
    values["files"] = {path: sha256_file(directory / path) for path in values["files"]}
    (directory / "evidence.json").write_text(evidence_text(Evidence.model_validate(values)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v["teachers"][0]["tests"][0]["finding"].update(p_value=1e-9), "finding.p_value"),
        (lambda v: v["teachers"][0]["tests"][0]["finding"].update(e_value=5000.0), "finding.e_value"),
        (
            lambda v: v["teachers"][0]["tests"][0]["finding"]["series"]["log10_e"].append(4.0),
            "series.log10_e",
        ),
        (lambda v: v["teachers"][0]["tests"][0]["placebos"].pop(), "placebos"),
        (lambda v: v["teachers"][0]["tests"][0]["finding"]["rivals"].pop(), "rivals"),
        (lambda v: v["teachers"][0]["rungs"][0].update(claimed=True), "rungs[0].claimed"),
        (
            lambda v: v["teachers"][0]["verdict"].update(headline="Hard evidence at level L2"),
            "verdict.headline",
        ),
        (lambda v: v.update(hard=1.5), "hard"),
        (lambda v: v["commitments"].update(in_time=False), "commitments.in_time"),
        (lambda v: v["teachers"][0]["log"].update(sha256="0" * 64), "teachers.ours.log"),
        (lambda v: v["suspect"].update(fingerprint="0" * 64), "fingerprint"),
    ],
)
def test_a_number_changed_with_all_hashes_made_to_fit_is_computed_otherwise(bare, change, named):
    rewrite(bare, change)
    found = verify_bundle(bare).differences
    assert any(named in line for line in found), found


def test_a_transcript_changed_with_all_hashes_made_to_fit_gives_other_numbers(bare):
    path = bare / transcript_path("ours", "exchangeable")
    before = pq.read_table(path)
    values = before["loglik"].to_pylist()
    values[0] += 100.0
    changed = before.set_column(before.column_names.index("loglik"), "loglik", [values])
    pq.write_table(changed, path)
    rewrite(bare, lambda values: None)
    assert any("finding" in line for line in verify_bundle(bare).differences)


def test_a_plan_changed_afterwards_breaks_its_commitment(bare):
    plan = bare / "plan.yaml"
    plan.write_text(plan.read_text().replace("hard: 1000.0", "hard: 2.0"))
    rewrite(bare, lambda values: values.update(hard=2.0))
    assert "plan.yaml is not the plan that was committed" in verify_bundle(bare).differences


def test_commitments_made_after_the_first_query_are_called_out(tmp_path, tiny_teacher):
    directory = tmp_path / "late"
    log = write_log(tmp_path / "log.jsonl", 600)
    plan = make_plan(log, tiny_teacher)
    before = "2020-01-01T00:00:00.000000+00:00"
    write_transcript(
        directory / transcript_path("ours", "exchangeable"), scores(600, 3, 0.0, seed=0), before, before
    )
    made = commit(plan, directory)
    access = {"ours": run.Access(frozenset({"logprobs"}), frozenset({"resamples"}), 0)}
    logs = {"ours": run.read_teacher_log(plan.teachers[0])}
    evidence = run._write_bundle(plan, directory, made, logs, access, None, "")
    assert not evidence.commitments.in_time
    assert "AFTER the first query" in verify_bundle(directory).notes[-1]
    assert "Committed too late" in (directory / "report.html").read_text()


def test_secrets_are_committed_salted_and_opened_at_the_end(tmp_path, tiny_teacher):
    canaries = tmp_path / "canaries.jsonl"
    canaries.write_text('{"text": "a canary"}\n')
    directory = tmp_path / "evidence"
    log = write_log(tmp_path / "evidence.jsonl", 600)
    plan = make_plan(log, tiny_teacher)
    teacher = TeacherPlan(**vars(plan.teachers[0]) | {"canaries": str(canaries)})
    evidence = make_bundle(directory, tiny_teacher, teachers=(teacher,))
    assert stat.S_IMODE((directory / "salts.json").stat().st_mode) == 0o600
    committed = read_commitments(directory / "commitments.json").secrets["ours.canaries"]
    assert committed != sha256_file(canaries) and "opened/ours.canaries" in evidence.files
    assert verify_bundle(directory).differences == []
    (directory / "opened/ours.canaries").write_text('{"text": "another"}\n')
    rewrite(directory, lambda values: None)
    assert "opened/ours.canaries is not the secret that was committed" in verify_bundle(directory).differences


def test_commitments_are_never_overwritten_and_say_what_differs(tmp_path, tiny_teacher):
    log = write_log(tmp_path / "log.jsonl", 40)
    plan = make_plan(log, tiny_teacher)
    made = commit(plan, tmp_path / "e")
    assert commit(plan, tmp_path / "e") == made
    write_log(log, 41)
    with pytest.raises(IntegrityError) as caught:
        commit(make_plan(log, tiny_teacher, hard=20.0), tmp_path / "e")
    assert "the plan is not the one that was committed" in str(caught.value)
    assert "logs: ours is not the one that was committed" in str(caught.value)
    assert read_commitments(tmp_path / "e/commitments.json") == made


def test_salts_hide_equal_secrets(tmp_path, tiny_teacher):
    log, secret = write_log(tmp_path / "log.jsonl", 40), tmp_path / "s"
    secret.write_text("secret")
    plan = make_plan(log, tiny_teacher)
    both = {"canaries": str(secret), "watermark_key": str(secret)}
    plan = make_plan(log, tiny_teacher, teachers=(TeacherPlan(**vars(plan.teachers[0]) | both),))
    salts = dict(zip(secret_files(plan), ("00" * 16, "11" * 16), strict=True))
    assert len(set(make_commitments(plan, salts).secrets.values())) == 2
    secret.unlink()
    with pytest.raises(StorageError, match="which the plan names"):
        make_commitments(plan, salts)


def test_evidence_that_is_none_is_refused(tmp_path, bare):
    with pytest.raises(IntegrityError, match=r"holds no evidence\.json"):
        read_evidence(tmp_path)
    for text, message in (
        ("{}", "not evidence of version 1"),
        ("nonsense", "not evidence"),
        ("\xff", "cannot be read"),
    ):
        (bare / "evidence.json").write_text(text, "latin-1")
        with pytest.raises(IntegrityError, match=message):
            read_evidence(bare)


class TestKeys:
    def test_a_key_is_the_owners_alone_and_never_overwritten(self, tmp_path):
        path = tmp_path / "signing.pem"
        make_key(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(UsageError, match="never overwritten"):
            make_key(path)
        path.chmod(0o644)
        with pytest.raises(StorageError, match="other users can read"):
            read_key(path)

    def test_what_is_no_key_is_refused(self, tmp_path):
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        with pytest.raises(StorageError, match="cannot read the key"):
            read_key(tmp_path / "none.pem")
        path = tmp_path / "k.pem"
        path.write_text("no key")
        path.chmod(0o600)
        with pytest.raises(UsageError, match="is not a private key"):
            read_key(path)
        other = x25519.X25519PrivateKey.generate()
        path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(UsageError, match="not an Ed25519 one"):
            read_key(path)

    def test_against_the_first_vector_of_rfc_8032(self):
        public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        signature = (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        )
        require_signature(public, signature, b"")
        with pytest.raises(IntegrityError, match="not that of the key"):
            require_signature(public, signature, b"x")
        with pytest.raises(IntegrityError, match="hexadecimal"):
            require_signature("zz", signature, b"")


def test_a_placebo_never_holds_the_delivered_output_and_is_drawn_evenly():
    import numpy as np

    table = scores(500, 3, 1.0, seed=0)
    rng, counts = np.random.default_rng(0), np.zeros(4)
    for _ in range(20):
        other = relabel_resample_as_delivered(table, rng)
        assert other is not None and other.num_rows == 1500
        texts = set(table.filter(table["draw"].to_numpy() > 0)["text"].to_pylist())
        assert set(other["text"].to_pylist()) == texts
        first = other.filter(other["draw"].to_numpy() == 0)
        assert len(set(first["id"].to_pylist())) == first.num_rows == 500
        for text in first["text"].to_pylist():
            counts[int(text[-1])] += 1
    assert counts[0] == 0 and abs(counts[1:] / counts.sum() - 1 / 3).max() < 0.02


def test_without_a_second_resample_there_is_no_placebo():
    import numpy as np

    assert relabel_resample_as_delivered(scores(10, 1, 0.0, seed=0), np.random.default_rng(0)) is None
