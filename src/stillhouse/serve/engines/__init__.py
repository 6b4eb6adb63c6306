"""Inference engines: one interface over the PyTorch sampler and llama.cpp."""
