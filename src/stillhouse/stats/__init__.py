"""Statistics without models: intervals, exact tails, e-values, rank tests, permutations, power, pass@k."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
