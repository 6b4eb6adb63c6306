"""Exports a student to GGUF for llama.cpp and Ollama; each file is checked against the model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
