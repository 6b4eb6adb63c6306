"""GGUF files: header, validation, configuration, tensors and tokenizer.

To support another architecture, begin in `architectures.py`.
"""
