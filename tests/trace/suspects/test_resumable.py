"""Resuming a test that was stopped between batches of answers."""

import pytest

from stillhouse.errors import CorpusError, ModelError
from stillhouse.models import Reply, Request, Sampling
from stillhouse.trace.suspects import resumable
from stillhouse.trace.suspects.resumable import ResumableAnswers, with_journal


class Model:
    """Answers with the request's id, refuses the third, and is interrupted after ``until`` batches."""

    def __init__(self, until):
        self.asked, self.until = [], until

    def __call__(self, requests):
        if len(self.asked) == self.until:
            raise KeyboardInterrupt
        self.asked.append([request.id for request in requests])
        return [
            ModelError("it refuses") if one.id == "2" else Reply(f"«{one.id}»", "hm", "stop", 3, 4)
            for one in requests
        ]


def requests(seed=0):
    return [Request(str(n), [{"role": "user", "content": "?"}], Sampling(seed=seed)) for n in range(5)]


def test_what_was_answered_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "BATCH", 2)
    journal, stopped, whole = tmp_path / "a/style-0.journal", Model(2), Model(9)
    with pytest.raises(KeyboardInterrupt):
        with_journal("style", stopped, journal)(requests())
    assert stopped.asked == [["0", "1"], ["2", "3"]]
    replies = with_journal("style", whole, journal)(requests())
    assert whole.asked == [["4"]]
    assert [str(r) if isinstance(r, ModelError) else r.text for r in replies] == [
        "«0»", "«1»", "it refuses", "«3»", "«4»",
    ]  # fmt: skip
    assert replies[0] == Reply("«0»", "hm", "stop", 3, 4)
    other = Model(9)
    with_journal("style", other, journal)(requests(seed=1))
    assert len(other.asked) == 3, "other questions are asked from the beginning"


def test_a_damaged_journal_is_named_and_none_keeps_nothing(tmp_path):
    path = tmp_path / "x.journal"
    path.write_text('{"questions": "?"}\nnot json\n')
    with pytest.raises(CorpusError, match=r"x\.journal:2"):
        ResumableAnswers(path, [])
    nothing = ResumableAnswers(None, [])
    assert nothing.next(lambda: [1]) == [1] and not nothing.knows_next
    nothing.close()
