"""Backends that generate answers: PyTorch, llama.cpp, OpenAI-compatible APIs.

A backend is a class that implements `stillhouse.models.types.Model`. To add one, begin in `open.py`.
"""
