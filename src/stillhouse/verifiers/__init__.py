"""Verifiers: score answers from 0 to 1; a failing verifier never stops a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
