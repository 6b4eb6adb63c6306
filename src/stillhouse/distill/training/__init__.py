"""The training loop, with its optimizer, learning rate schedule, checkpoints and metrics."""
