"""Answer in private: an OpenAI-compatible server on this machine, with a chat page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
