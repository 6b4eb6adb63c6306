"""Published methods and simple heuristics on the same suspects: each decides whether to accuse.

No null hypothesis of theirs survives "it learned that from the web"; the table shows what that costs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats

ALPHA = 0.05
CUTOFF = 0.7
"""Pearson's correlation above which `knowlyr-modelaudit` 0.4.1 calls two models related."""


def provenance(suspect: Sequence[str], teacher: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """The pooled-z provenance test of Nikolic et al. 2025 (arXiv:2502.00706).

    Args:
        suspect: its first word after each of many prompts.
        teacher: the same of the teacher.
        others: the same of the other candidates.

    Returns:
        Whether the teacher agrees with the suspect most often, and significantly more often than each of the
        others (two-sided pooled z, Fisher's exact test below 5 agreements; Holm at 5%).
    """
    n = len(suspect)

    def hits(candidate: Sequence[str]) -> int:
        return sum(a == b for a, b in zip(suspect, candidate, strict=True))

    own, rivals = hits(teacher), [hits(other) for other in others]
    if own <= max(rivals):
        return False
    ps = sorted(_two_proportions(own, rival, n) for rival in rivals)
    return all(p <= ALPHA / (len(ps) - rank) for rank, p in enumerate(ps))


def _two_proportions(a: int, b: int, n: int) -> float:
    if min(a, b) < 5:
        return float(stats.fisher_exact([[a, n - a], [b, n - b]]).pvalue)
    pooled = (a + b) / (2 * n)
    z = (a - b) / n / math.sqrt(2 * pooled * (1 - pooled) / n)
    return float(2 * stats.norm.sf(abs(z)))


def style(suspect: Sequence[str], teacher: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """A closed-set style classifier: naive Bayes over words and pairs of words.

    Returns:
        Whether more of the suspect's texts are attributed to the teacher than to any other candidate.
    """
    classes = [teacher, *others]
    counts = [Counter(feature for text in texts for feature in _features(text)) for texts in classes]
    known = set().union(*counts)
    totals = [sum(count.values()) + len(known) for count in counts]
    votes: Counter[int] = Counter()
    for text in suspect:
        features = [feature for feature in _features(text) if feature in known]
        chances = [
            sum(math.log((count[feature] + 1) / total) for feature in features)
            for count, total in zip(counts, totals, strict=True)
        ]
        votes[int(np.argmax(chances))] += 1
    return votes.most_common(1)[0][0] == 0


def similarity(suspect: Sequence[str], teacher: Sequence[str]) -> float:
    """Pearson's correlation of the two models' word counts; accuses at :data:`CUTOFF`."""
    one, other = (Counter(word for text in texts for word in _words(text)) for texts in (suspect, teacher))
    words = sorted(set(one) | set(other))
    return float(np.corrcoef([one[word] for word in words], [other[word] for word in words])[0, 1])


def identity(answers: Sequence[str], name: str) -> bool:
    """Whether one in ten answers to "who are you" contains the teacher's name."""
    return sum(name in answer for answer in answers) * 10 >= len(answers)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _features(text: str) -> list[str]:
    words = _words(text)
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]
