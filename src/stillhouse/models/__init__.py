"""Models: references, metadata, weights, tokenizers, chat templates, sampling, and generation backends.

To support another model architecture in GGUF, begin in `gguf/architectures.py`; to add a backend, in
`backends/open.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
