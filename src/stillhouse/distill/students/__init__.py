"""Build a student: pretrained, pruned, from scratch, with LoRA; save it."""
