"""Estimates the cost of a recipe: tokens, memory, time and money, with the verdict on terms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
