"""A student as a file for llama.cpp and Ollama: GGUF, checked against the model before it takes its name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
