"""Students: loaded, pruned or initialized from scratch, with LoRA adapters, and saved."""
