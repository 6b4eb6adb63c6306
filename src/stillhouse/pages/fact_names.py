"""Names of the facts that reports and model cards show, in place of the keys of the manifest."""

from __future__ import annotations

FACT_NAMES = {
    # collecting and filtering
    "asked": "answers asked for",
    "finished_before": "answered by an earlier run",
    "collected": "answers collected",
    "imported": "answers from the prompt file",
    "failed": "requests failed",
    "not_sent": "answers with a setting left to the API",
    "set_aside": "answers set aside",
    "prompt_tokens": "tokens of the prompts",
    "completion_tokens": "tokens of the answers",
    "cost_usd": "cost in US dollars",
    "stopped_by": "stopped by",
    "dropped_prompts": "prompts dropped for overlap with held-out ones",
    "kept": "exchanges to train on",
    "held_out": "exchanges held out",
    "rejected": "rejected",
    # the student
    "init": "start",
    "parameters": "parameters",
    "layers": "layers",
    "vocab_size": "vocabulary, tokens",
    "unrendered": "exchanges that its chat template refuses",
    "calibration_tokens": "tokens of calibration text",
    "parent_layers": "layers of the parent",
    "massive": "layers with massive activations",
    "keep": "layers kept",
    "healed": "gaps healed",
    "intermediate": "MLP neurons kept",
    "heads": "key-value heads kept",
    "hidden": "hidden channels kept",
    "LoRA": "LoRA",
    # terms and lineage
    "key": "terms",
    "name": "name",
    "purpose": "purpose",
    "reason": "reason",
    "duties": "duties",
    "accepted": "accepted because",
    "teacher": "teacher",
    "prompts": "prompts",
    "teacher_hash": "teacher's fingerprint (SHA-256)",
    "template_hash": "chat template (SHA-256)",
    "context_hash": "teacher's context (SHA-256)",
    # training, stages and environment
    "tokens": "tokens trained on",
    "steps": "optimizer steps",
    "train_seconds": "training time",
    "on_policy": "on its own samples",
    "stillhouse": "Stillhouse",
    "python": "Python",
    "torch": "PyTorch",
    "transformers": "transformers",
    "platform": "platform",
    "processors": "processors",
    "threads": "threads",
}

STARTS = {
    "prune": "a larger model with parts removed",
    "scratch": "random weights",
    "pretrained": "a pretrained model",
}
"""Values of a student's ``init``."""

TIMES = ("seconds", "cpu_seconds")
"""Facts of every stage. They belong to the table of costs and to no other list of facts."""


def fact_name(key: str) -> str:
    """The name of a fact, e.g. ``layers kept`` for ``keep``; an unknown key with spaces for underscores."""
    return FACT_NAMES.get(key, key.replace("_", " "))
