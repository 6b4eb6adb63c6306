"""Sampling from local weights: batches, continuous batching, constraints, decoders."""
