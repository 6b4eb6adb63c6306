"""Shared by the tests of ranks, e-values and power."""

from stillhouse.stats import clopper_pearson, rank_payoffs


def within(rejections, draws, alpha):
    """Whether a rejection rate is compatible with ``alpha``: one-sided Clopper–Pearson bound at 99.9%."""
    return clopper_pearson(int(rejections), draws, 0.998)[0] <= alpha


def bets_of(scores):
    """Payoffs [bets, N] of the bets on the delivered outputs."""
    return rank_payoffs(scores)[:, :, 0]
