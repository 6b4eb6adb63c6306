"""The published tables of "Watermarking makes language models radioactive", recomputed from their counts.

Figures are those of the expected outputs in the paper's repository (facebookresearch/radioactive-watermark):
p-values to all digits, and mean scores that leave one count possible for each. Its closed tables give the
p-value of one token more than their `num_scored` says: the first row has p = .25 "after 0 tokens" with a
score of 1, which is P(X ≥ 1) of one token.
"""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.watermark import Mark, detection_from_scores

ROWS = {
    "closed, 5% marked": (64_239, 248_201, 2.6243116273313888e-24, 0.25881),
    "closed, none": (26_082, 105_401, 0.9721457094218579, 0.24745),
    "open, none": (54_096, 216_292, 0.45535759392427766, 0.2501063377286261),
}


@pytest.mark.parametrize("row", list(ROWS))
def test_the_published_p_value_is_the_tail_of_one_count_only(row):
    green, scored, published, share = ROWS[row]
    mark = Mark(bytes(32), "kgw", gamma=0.25)
    found = {
        k: detection_from_scores(mark, np.repeat([1.0, 0.0], [k, scored - k]))
        for k in (green - 1, green, green + 1)
    }
    assert found[green].p_value == pytest.approx(published, rel=1e-9)
    assert all(abs(found[k].p_value / published - 1) > 1e-4 for k in (green - 1, green + 1))
    assert found[green].mean == pytest.approx(share, abs=1e-5)


def test_the_marked_student_stands_ten_deviations_out_and_the_others_do_not():
    mark = Mark(bytes(32), "kgw", gamma=0.25)
    marked, *others = (
        detection_from_scores(mark, np.repeat([1.0, 0.0], [k, n - k])) for k, n, _, _ in ROWS.values()
    )
    assert marked.z == pytest.approx(10.1, abs=0.05)
    assert marked.e_value > 1e18
    assert all(abs(other.z) < 2 and other.e_value < 1 for other in others)
