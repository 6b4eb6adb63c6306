"""Exports a student to GGUF for llama.cpp and Ollama; each file is checked against the model."""

import lazy_loader

from stillhouse.callable_package import make_callable

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
make_callable(__name__)
