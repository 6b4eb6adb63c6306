"""Is an answer right? Scores from 0 to 1, from verifiers that cannot stop a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
