"""Evaluation on held-out documents: measures with clustered intervals, comparison, report."""

import lazy_loader

from stillhouse.callable_package import make_callable

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_callable(__name__)
