"""Ask the teacher: requests in parallel, budget, failures, resuming."""
