"""Runs recipes and studies: :mod:`.runner` has the loop over stages, :mod:`.stages` what each stage does."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
