"""The training loop: optimizer, schedule, checkpoints, tracking."""
