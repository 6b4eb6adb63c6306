"""Distillation: tokenised documents, teacher targets, losses, students, off-policy and on-policy training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
