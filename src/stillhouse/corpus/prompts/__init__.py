"""Read prompts from files, packages and generators; hold some out; add context."""
