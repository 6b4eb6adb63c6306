"""A sample report of the usual size, for the tests of the page and for viewing it.

`python tests/evaluate/evaluate_sample.py DIRECTORY` writes it there.
"""

# ruff: noqa: E501  prose in a dictionary

from __future__ import annotations

import sys
from typing import Any

import numpy as np

DOCUMENTS = 50


def estimate(value: float, half: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "documents": DOCUMENTS,
        "confidence": 0.95,
    }


def perplexity(nll: float, half: float) -> dict[str, Any]:
    ends = {"low": float(np.exp(nll - half)), "high": float(np.exp(nll + half))}
    return {"value": float(np.exp(nll)), **ends, "documents": DOCUMENTS, "confidence": 0.95}


def model(key: str, label: str, kl: tuple, agreement: tuple, nll: tuple, size: tuple, speed: float) -> dict:
    return {
        "key": key,
        "label": label,
        "parameters": size[0],
        "bytes": size[1],
        "format": size[2],
        "kl": estimate(*kl),
        "agreement": estimate(*agreement),
        "nll": estimate(*nll),
        "perplexity": perplexity(*nll),
        "tokens_per_s": {"median": speed, "low": speed * 0.93, "high": speed * 1.04},
        "scored_tokens_per_s": {"median": speed * 20, "low": speed * 18, "high": speed * 21},
    }


def sample_report() -> dict[str, Any]:
    """Pruned SmolLM2 and its control; the numbers are plausible, not measured."""
    rng = np.random.default_rng(0)
    small = (81_240_000, 325_000_000, "safetensors")
    steps = np.arange(1, 121)
    curve = 0.7 + 3.0 * np.exp(-steps / 14) + rng.normal(0, 0.06, len(steps))
    control = 1.9 + 4.2 * np.exp(-steps / 16) + rng.normal(0, 0.09, len(steps))
    influence = [0.997, 0.176, *rng.uniform(0.028, 0.07, 27).round(3).tolist(), 0.42]
    keep = [0, 1, 8, 9, 11, 18, 19, 20, 21, 22, 23, 24, 27, 28, 29]
    questions = [
        "A refracting telescope consists of two converging lenses separated by 100 cm. The eye-piece lens has a "
        "focal length of 20 cm. What is the angular magnification of the telescope?\n(A) 10 (B) 40 (C) 6 (D) 4",
        "Which of the following is a remote Trojan?\n(A) Troya (B) DaCryptic (C) BankerA (D) Game-Troj",
        "Explain in one sentence why the sky is blue.",
        "What does the acronym HTTP stand for?",
        "Name three things a contract needs to be valid in common law.",
    ]
    replies = {
        "teacher": "The angular magnification of a telescope is the ratio of the focal lengths of its two lenses. "
        "The objective has 100 − 20 = 80 cm, so the magnification is 80 / 20 = 4. The answer is (D) 4.",
        "before": "The the the of of of 100 100 100 100 100 lens lens lens lens lens lens lens lens lens lens …",
        "student": "The magnification of the telescope is the ratio of the focal length of the objective to that of "
        "the eye-piece. The eye-piece has 20 cm, so the magnification is 100 / 20 = 5. The answer is (A) 10. …",
        "control": "The magnification of the telescope is the distance between the two lenses. The answer is 20 cm "
        "and the lens of the lens is 100 cm. The answer is (B) 40. The answer is (B) 40. The answer is (B) 40. …",
    }
    return {
        "schema_version": 1,
        "name": "quickstart",
        "created": "2026-11-23T20:14:09Z",
        "objective": "forward_kl",
        "models": [
            model(
                "teacher",
                "embedded:smollm2",
                (0, 0),
                (1, 0),
                (0.62, 0.05),
                (134_515_008, 98_600_000, "GGUF"),
                22.4,
            ),
            model(
                "before", "student before training", (3.814, 0.11), (0.164, 0.012), (6.78, 0.16), small, 41.2
            ),
            model(
                "student", "student (forward KL)", (0.723, 0.031), (0.714, 0.011), (1.41, 0.06), small, 41.0
            ),
            model(
                "control",
                "control (cross-entropy only)",
                (0.861, 0.036),
                (0.688, 0.012),
                (1.49, 0.063),
                small,
                41.5,
            ),
        ],
        "comparison": {
            "control": {
                "kl": estimate(-0.138, 0.021),
                "agreement": estimate(0.026, 0.006),
                "nll": estimate(-0.081, 0.018),
            },
            "before": {
                "kl": estimate(-3.091, 0.1),
                "agreement": estimate(0.55, 0.014),
                "nll": estimate(-5.37, 0.15),
            },
        },
        "verdict": {
            "outcome": "better",
            "against": "control",
            "headline": "The student is closer to its teacher than the control and than before training",
            "sentence": "On 50 held-out documents the student's divergence from the teacher is 0.138 nats per token "
            "lower than that of the control (95% interval of the paired difference: 0.117 to 0.159 lower, clustered by "
            "document).",
            "since_before": "Student − before training: KL −3.091 [−3.191, −2.991] nats per token; agreement +55.0 "
            "[+53.6, +56.4] points; NLL −5.370 [−5.520, −5.220] nats per token.",
            "margins": {"kl": 0.01, "agreement": 0.01, "nll": 0.01, "pass_at_1": 0.01},
        },
        "held_out": {"documents": DOCUMENTS, "tokens": 4870},
        "conditions": {
            "dtype": "float32",
            "device": "cpu",
            "threads": 2,
            "speed_prompt_tokens": 128,
            "speed_new_tokens": 32,
            "speed_rounds": 5,
            "answer_max_tokens": 96,
            "confidence": 0.95,
        },
        "training": {
            key: [
                {"step": int(s), "loss": float(v), "tokens": int(s) * 1180}
                for s, v in zip(steps, y, strict=True)
            ]
            for key, y in (("student", curve), ("control", control))
        },
        "answers": [{"prompt": q, "messages": [], "replies": replies} for q in questions],
        "corpus": {
            "source": "package:mmlu",
            "prompts": 282,
            "held out prompts": 50,
            "dropped for a shared 13-gram": 3,
            "collected": 458,
            "kept": 421,
            "training tokens": 141_600,
            "rejected": {"truncated": 24, "refusal": 2, "near_duplicate": 11},
        },
        "student_facts": {
            "init": "prune",
            "parent": "embedded:smollm2",
            "layers": 15,
            "keep": keep,
            "healed": [{"first": 2, "last": 7, "error_before": 0.41, "error_after": 0.18}],
            "calibration_tokens": 8192,
            "influence": influence,
        },
        "stages": [
            {"name": "terms", "seconds": 0.1},
            {"name": "collect", "seconds": 151.3, "tokens": 151_113},
            {"name": "filter", "seconds": 1.9},
            {"name": "student", "seconds": 14.2},
            {"name": "targets", "seconds": 55.7, "tokens": 141_600},
            {"name": "train", "seconds": 132.6, "tokens": 141_600},
            {"name": "control", "seconds": 121.0, "tokens": 141_600},
            {"name": "evaluate", "seconds": 78.4},
        ],
        "terms": {
            "name": "Apache License 2.0",
            "outputs_may_train": "yes",
            "purpose": "research",
            "allowed": True,
            "reason": "the licence puts no condition on outputs",
            "duties": ["keep the licence text and notices with copies of the weights"],
            "source": "https://www.apache.org/licenses/LICENSE-2.0, section 2",
            "checked": "2026-11-20",
        },
        "lineage": {
            "teacher": "embedded:smollm2",
            "teacher_hash": "9b1c" * 16,
            "template_hash": "4f0e" * 16,
            "student_hash": "c77a" * 16,
        },
        "recipe": "name: quickstart\nteacher:\n  model: embedded:smollm2\nstudent:\n  init: prune\n  layers: 15\n"
        "objective:\n  kind: forward_kl\n  temperature: 1.0\ntrain:\n  epochs: 1.0\n  learning_rate: 0.001\nseed: 0\n",
        "environment": {
            "stillhouse": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "platform": "Linux x86_64, 2 cores",
        },
        "command": "still run runs/quickstart/recipe.yaml --out runs/again",
    }


if __name__ == "__main__":
    from stillhouse.evaluate import write_report

    write_report(sys.argv[1], sample_report())
