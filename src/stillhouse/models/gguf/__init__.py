"""GGUF files: header, validation, configuration, tokenizer."""
