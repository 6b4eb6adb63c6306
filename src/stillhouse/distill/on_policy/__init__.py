"""On-policy distillation and reinforcement learning on the student's own samples."""
