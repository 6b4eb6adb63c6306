"""Stillhouse: distil a large language model into a small one that you own.

The names below are the Python interface; docs/python.md shows them at work. Each is loaded when it is first
used, so that importing this package takes milliseconds.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    # These packages can be called (see callable_package.py).
    submodules={"evaluate", "export", "serve", "trace"},
    submod_attrs={
        "corpus.conversations": ["collect"],
        "distill.data.documents": ["Document"],
        "distill.data.tokenize": ["tokenize"],
        "distill.loss.logits_divergence": ["divergence"],
        "distill.students.save": ["save"],
        "distill.targets.teacher_signal": ["cache_targets"],
        "distill.training.loop": ["train"],
        "errors": ["StillhouseError"],
        "models.load": ["load"],
        "models.weights": ["Weights"],
        "recipe.sections": ["Objective", "Train"],
    },
)
