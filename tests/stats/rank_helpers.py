"""Shared by the tests of ranks, e-values and power."""

from stillhouse.stats import clopper_pearson, rank_payoffs


def within(rejections, draws, alpha):
    """Not above alpha beyond what chance allows: the one-sided Clopper–Pearson bound at 99.9% covers it."""
    return clopper_pearson(int(rejections), draws, 0.998)[0] <= alpha


def bets_of(scores):
    """What the bets on the delivered outputs pay, [bets, N]."""
    return rank_payoffs(scores)[:, :, 0]
