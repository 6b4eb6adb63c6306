"""Serves models on this machine: an OpenAI-compatible API and a chat page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
