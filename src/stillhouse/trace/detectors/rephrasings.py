"""Rephrasings: compares the published version of each text with versions that were held back (L2).

After STAMP (Rastogi et al. 2025, arXiv:2504.13416), for authors who want to know whether a model was trained
on their published texts. Each text has K + 1 versions, rephrasings by one generator with the same settings
(the original may be one of them only if it took part in the draw), and one of them was published.

The meaning of the numbers depends on how that one was chosen:

- *drawn by lot* (:func:`draw_version`, under a key committed to before publication): under the null, every
  version could as well have been the published one, whatever the model finds likely. The rank test is exact.
- *chosen by the author*, for example when the original is published and rephrasings are made later: the
  author's taste or another generator distinguishes the published version from the others, and a model that
  never saw it may prefer it for that alone. The paired t-test of the paper is asymptotic and rests on an
  assumption that nothing in the data can verify. It has no e-value and never adds to a verdict.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.errors import CorpusError, UsageError
from stillhouse.files import write_secret_lines
from stillhouse.stats import e_from_log, log_rank_e_process, rank_test, student_t_upper
from stillhouse.trace.access import Access
from stillhouse.trace.delivered_log import SHORTEST
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.transcript import per_token, score_blind
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.trace.plan import TracePlan
from stillhouse.trace.suspects.base import Suspect

NAME = "rephrasings"
MOST_COMPLAINTS = 5
LEVEL: Level = "L2"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("version", pa.int32()),  # 0 is the published one
        ("place", pa.int32()),  # its index among the versions at the time of the draw
        ("draw_key", pa.string()),  # hexadecimal; null where the author chose
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("loglik", pa.float64()),
        ("reference_loglik", pa.float64()),
    ]
)
RIVALS = ("the suspect was trained on a copy or a quotation of the published text, not on the author's own",)


@dataclass(frozen=True)
class TextVersions:
    """All versions of one text."""

    id: str
    versions: tuple[str, ...]
    published: int
    """Index of the published one."""
    draw_key: str | None = None
    """The key under which :func:`draw_version` chose it, hexadecimal; None if the author chose."""


def draw_version(key: bytes, id: str, versions: int) -> int:
    """The index of the version to publish: uniform, determined by the key as HMAC-SHA256 of the id.

    Commit to the key and to the versions in their order before publishing anything.

    Raises:
        UsageError: the key is shorter than 16 bytes.
    """
    if len(key) < 16:
        raise UsageError(
            "a key of fewer than 16 bytes can be guessed", hint="Take 16 or 32 bytes from `openssl rand`."
        )
    assert versions >= 2
    return int.from_bytes(hmac.new(key, id.encode(), hashlib.sha256).digest()[:8], "big") % versions


def read_versions(path: str | Path, *, chosen: bool = True) -> list[TextVersions]:
    """Reads texts from JSON lines: objects with `id`, `versions`, `published` and optionally `draw_key`.

    Args:
        chosen: False if no version has been chosen yet: reads only `id` and `versions`, and skips blank
            lines.

    Raises:
        CorpusError: the file cannot be read, or a line is not such an object.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the texts cannot be read: {error}") from error
    texts = [
        _read_text(line, f"{path}:{number}", chosen)
        for number, line in enumerate(lines, 1)
        if chosen or line.strip()
    ]
    if not texts:
        raise CorpusError(f"{path} holds no texts")
    if len({text.id for text in texts}) < len(texts):
        raise CorpusError(f"{path}: two texts have the same id")
    return texts


def draw_versions(texts: Sequence[TextVersions], key: bytes) -> list[TextVersions]:
    """Chooses a version of each text; see :func:`draw_version`.

    Raises:
        CorpusError: a trace would leave a text out, because a version is too short or belongs to two texts.
    """
    complaints = list(_unusable(texts))
    if complaints:
        more = (
            [f"  and {len(complaints) - MOST_COMPLAINTS} more"] if len(complaints) > MOST_COMPLAINTS else []
        )
        lines = [f"  {complaint}" for complaint in complaints[:MOST_COMPLAINTS]] + more
        raise CorpusError(
            "a trace would leave these texts out:\n" + "\n".join(lines),
            hint="Nothing was drawn. Lengthen or join them, or remove them from the file.",
        )
    return [
        replace(text, published=draw_version(key, text.id, len(text.versions)), draw_key=key.hex())
        for text in texts
    ]


def _unusable(texts: Sequence[TextVersions]) -> Iterator[str]:
    """Why a trace would leave out a text, whichever version is drawn."""
    owners: dict[str, str] = {}
    for text in texts:
        for number, version in enumerate(text.versions, 1):
            if (length := len(version.strip())) < SHORTEST:
                yield f"{text.id}: version {number} has {length} of at least {SHORTEST} characters"
            elif (owner := owners.setdefault(version.strip(), text.id)) != text.id:
                yield f"{text.id}: version {number} is also a version of {owner}"


def largest_e_value(texts: Sequence[TextVersions]) -> float:
    """The e-value if a suspect prefers every published version to all others: no result can be higher."""
    scores_NK1 = np.full((len(texts), max(len(text.versions) for text in texts)), np.nan)
    for row_K1, text in zip(scores_NK1, texts, strict=True):
        row_K1[: len(text.versions)] = -np.arange(len(text.versions))
    return e_from_log(log_rank_e_process(scores_NK1)[-1])


def write_versions(path: str | Path, texts: Sequence[TextVersions]) -> None:
    """Writes JSON lines, one text each, readable by their owner only: they hold the key.

    Raises:
        UsageError: the file exists; the key of a publication must not be lost.
    """
    exists = UsageError(f"{path} exists, and drawn texts are never overwritten", hint="Name another --out.")
    write_secret_lines(path, map(asdict, texts), if_exists=exists)


def observe(suspect: Suspect, texts: Sequence[TextVersions], *, reference: Suspect | None = None) -> pa.Table:
    """Log-likelihoods of every version, by the suspect and optionally by a reference model.

    Args:
        reference: a model that cannot have read any version. Subtracting its score removes what makes a text
            likely to any model and increases power; it is used for all versions or none.
    """
    rows = []
    for text in texts:
        order = sorted(range(len(text.versions)), key=lambda index: (index != text.published, index))
        rows += [
            (text.id, version, index, text.draw_key, text.versions[index])
            for version, index in enumerate(order)
        ]
    ids, versions, indices, keys, bodies = zip(*rows, strict=True)
    tokens, logliks = score_blind(suspect, bodies)
    references = [None] * len(bodies) if reference is None else score_blind(reference, bodies)[1]
    columns = [ids, versions, indices, keys, bodies, tokens, logliks, references]
    return pa.Table.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA
    )


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Ranks the published version of each text among its versions; takes no parameters."""
    table = _by_text(transcript)
    drawn = table.drawn_by_lot()
    if not len(table.scores_NK1):
        return Finding(
            NAME,
            LEVEL,
            _null(drawn),
            0,
            parameters=dict(parameters),
            reason="No published text has a log-likelihood together with one of its other versions. The test "
            "needs a suspect that gives log-probabilities of given text, and versions that were held back.",
        )
    test = rank_test(table.scores_NK1)
    t_p, mean_gain = paired_t(table.scores_NK1)
    p = test.p if drawn else t_p
    return Finding(
        NAME,
        LEVEL,
        _null(drawn),
        n=test.n,
        statistic=(
            "versions that the published one outranks less those that outrank it, summed over the texts"
            if drawn
            else "mean over texts of the published version's score less the mean of the others', nats a token"
        ),
        value=float(test.total) if drawn else mean_gain,
        p_value=p,
        e_value=e_from_log(log_rank_e_process(table.scores_NK1)[-1]) if drawn else None,
        effect={"auc": test.auc, "mean_gain": mean_gain, "p_paired_t": t_p, "p_rank": test.p},
        assumptions=_assumptions(table, drawn),
        rivals=RIVALS if drawn else (*RIVALS, "the published version reads differently from its rephrasings"),
        parameters=dict(parameters),
    )


def paired_t(scores_NK1: np.ndarray) -> tuple[float, float]:
    """STAMP's one-sided paired t-test of column 0 against the mean of the others: p and the mean difference.

    Asymptotic. Returns p = 1 for a single text and for differences that are all equal.
    """
    gain_N = scores_NK1[:, 0] - np.nanmean(scores_NK1[:, 1:], axis=1)
    n, spread = len(gain_N), float(gain_N.std(ddof=1)) if len(gain_N) > 1 else 0.0
    if spread == 0:
        return 1.0, float(gain_N.mean())
    t = float(gain_N.mean()) / (spread / np.sqrt(n))
    return student_t_upper(t, n - 1), float(gain_N.mean())


@dataclass(frozen=True)
class _Table:
    """N comparable texts, the published version in column 0; NaN for missing versions."""

    scores_NK1: np.ndarray
    tokens_NK1: np.ndarray
    left_out: int
    """Texts without a score of the published version or of any other version."""
    with_reference: bool
    drawn: int
    """Texts whose published version is the one that their key determines."""
    keyed: int
    """Texts with a key."""
    texts: int

    def drawn_by_lot(self) -> bool:
        return self.texts > 0 and self.drawn == self.texts


def _by_text(transcript: pa.Table) -> _Table:
    reference = transcript["reference_loglik"]
    with_reference = transcript.num_rows > 0 and reference.null_count == 0
    score = per_token(transcript) - (per_token(transcript, "reference_loglik") if with_reference else 0.0)
    tokens = np.where(np.isnan(score), np.nan, transcript["tokens"].to_numpy().astype(np.float64))
    rows_of: dict[str, list[int]] = {}
    for row, id in enumerate(transcript["id"].to_pylist()):
        rows_of.setdefault(id, []).append(row)
    version, index, key = (transcript[name].to_pylist() for name in ("version", "place", "draw_key"))
    shape = (len(rows_of), max(map(len, rows_of.values()), default=0))
    scores_NK1, tokens_NK1 = np.full(shape, np.nan), np.full(shape, np.nan)
    drawn = 0
    for i, (id, rows) in enumerate(rows_of.items()):
        rows.sort(key=version.__getitem__)
        scores_NK1[i, : len(rows)], tokens_NK1[i, : len(rows)] = score[rows], tokens[rows]
        if (secret := key[rows[0]]) is not None:
            drawn += draw_version(bytes.fromhex(secret), id, len(rows)) == index[rows[0]]
    comparable = ~np.isnan(scores_NK1[:, :1]).any(1) & (np.count_nonzero(~np.isnan(scores_NK1), axis=1) > 1)
    return _Table(
        scores_NK1[comparable],
        tokens_NK1[comparable],
        left_out=int((~comparable).sum()),
        with_reference=with_reference,
        drawn=drawn,
        keyed=sum(key[rows[0]] is not None for rows in rows_of.values()),
        texts=len(rows_of),
    )


def _null(drawn: bool) -> str:
    if drawn:
        return (
            "The suspect was not trained on the published versions. Then the published version of each text "
            "and the others are exchangeable to the suspect; the key that drew it makes that distribution."
        )
    return (
        "The suspect was not trained on the published versions, and a model that was not finds them on "
        "average as likely as their rephrasings. The second half is an assumption: nobody drew by lot."
    )


def _assumptions(table: _Table, drawn: bool) -> tuple[Assumption, ...]:
    length = rank_test(table.tokens_NK1)
    two_sided = min(1.0, 2 * min(length.p_normal, 1 - length.p_normal))
    return (
        Assumption(
            "The published version of every text was drawn by lot under a committed key.",
            drawn if table.keyed == table.texts else False,
            f"Of {table.texts:,} texts {table.keyed:,} come with a key, which draws the published version of "
            f"{table.drawn:,}.",
        ),
        Assumption(
            "A model that has not read them finds published versions and rephrasings equally likely.",
            True if drawn else None,
            "It follows from the draw." if drawn else "Unverifiable: the p-value stands and falls with it.",
        ),
        Assumption(
            "Published versions are as long as the others.",
            two_sided > 0.01,
            f"A published version has more tokens than another with chance {length.auc:.3f} (p = "
            f"{two_sided:.2g}, two-sided)"
            + ("; p holds either way." if drawn else "; length sways likelihood."),
        ),
        Assumption("Every text was scored.", not table.left_out, f"{table.left_out:,} texts were left out."),
        Assumption(
            "The p-value holds for any number of texts.",
            drawn,
            "Exact permutation." if drawn else "Student's t: asymptotic.",
        ),
    )


def _read_text(line: str, where: str, chosen: bool) -> TextVersions:
    try:
        raw = json.loads(line)
        versions = raw["versions"]
        published, key = (raw["published"], raw.get("draw_key")) if chosen else (0, None)
        if not isinstance(versions, list) or not all(isinstance(text, str) for text in versions):
            raise ValueError("`versions` must be a list of texts")
        if len(set(versions)) < max(2, len(versions)):
            raise ValueError("`versions` must be at least two different texts")
        if not isinstance(published, int) or not 0 <= published < len(versions):
            raise ValueError(f"`published` must be an index of `versions`, 0 to {len(versions) - 1}")
        if key is not None and len(bytes.fromhex(key)) < 16:
            raise ValueError("`draw_key` must be at least 16 bytes in hexadecimal")
        return TextVersions(str(raw["id"]), tuple(versions), published, key)
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{where}: not a text with its versions ({error})",
            hint="Each line is an object with `id`, `versions`, `published`, and `draw_key` if drawn.",
        ) from error


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.rephrasings is not None
    if plan.tests.rephrasings.texts is None:
        return "needs published texts with rephrasings (`tests.rephrasings.texts` in the plan)."
    return access.suspect_lacks("logprobs")


def _observe(case: Case) -> pa.Table:
    section = case.plan.tests.rephrasings
    assert section is not None and section.texts is not None
    texts = read_versions(section.texts)
    with case.open_reference() as reference:
        return observe(case.suspect, texts, reference=reference)


REPHRASINGS = Detector(
    name=NAME,
    level=LEVEL,
    title="Published text against held-back rephrasings",
    explanation=(
        "Beside each published text lie rephrasings of it that were never published. The test asks "
        "whether the suspect finds the published version more familiar than the others."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
    about_texts=True,
)
