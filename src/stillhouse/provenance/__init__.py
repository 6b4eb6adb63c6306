"""A student's origins: the terms of its teacher, the manifest of a run, the model card.

Nothing here is legal advice, and nothing is signed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
