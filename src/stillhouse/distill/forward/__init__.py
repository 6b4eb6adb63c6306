"""The forward pass: packing, attention without crossing documents, precision."""
