"""Backends that generate: PyTorch, llama.cpp, OpenAI-compatible APIs."""
