"""On-policy distillation and reinforcement learning: the student learns from its own samples."""
