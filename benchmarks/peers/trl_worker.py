"""The peer of ``on_policy.py``: one run of TRL's GRPOTrainer, DistillationTrainer or GKDTrainer.

    PEER_PYTHON benchmarks/peers/trl_worker.py '{"method": "grpo", …}'

Every answer is forced to its full length; nothing is logged or saved; activations are not recomputed. The
task's ``peer`` has the tunable options: ``batch`` (rows per pass) and ``precision`` (``autocast``: bfloat16
passes over float32 weights, TRL's default; ``float32``; ``weights``: weights in bfloat16, which loses small
updates).
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from shared import WARM_UP, Meter, read_conversations, reward
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Marks(TrainerCallback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.mark()


def common_options(task: dict[str, Any], directory: str) -> dict[str, Any]:
    """Arguments common to all three configurations."""
    rows, batch = task["prompts_per_step"] * task["samples"], task["peer"]["batch"]
    return {
        "output_dir": directory,
        "use_cpu": True,
        "bf16": task["peer"]["precision"] == "autocast",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch,
        "max_steps": task["steps"] + WARM_UP,
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "temperature": 1.0,
        "seed": task["seed"],
    }


def grpo(task: dict[str, Any], directory: str, tools: dict[str, Any]) -> GRPOTrainer:
    """DAPO's loss with Dr. GRPO's advantages, which are Stillhouse's defaults."""

    def score(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(completion[0]["content"]) for completion in completions]

    options = GRPOConfig(
        **common_options(task, directory),
        num_generations=task["samples"],
        max_completion_length=task["max_tokens"],
        generation_kwargs={"min_new_tokens": task["max_tokens"]},
        beta=0.0,
        loss_type="dapo",
        scale_rewards="none",
        epsilon=0.2,
        epsilon_high=0.28,
        shuffle_dataset=False,
    )
    rows = [{"prompt": conversation} for conversation in read_conversations(task["prompts"])]
    return GRPOTrainer(args=options, reward_funcs=score, train_dataset=Dataset.from_list(rows), **tools)


def distillation(task: dict[str, Any], directory: str, tools: dict[str, Any]) -> DistillationTrainer:
    """Reverse KL. It does not support groups: each sample of a prompt is a row."""
    options = DistillationConfig(
        **common_options(task, directory),
        max_completion_length=task["max_tokens"],
        generation_kwargs={"min_new_tokens": task["max_tokens"]},
        beta=1.0,
        shuffle_dataset=False,
    )
    rows = [{"prompt": conversation} for conversation in repeated(task)]
    return DistillationTrainer(
        args=options, teacher_model=teacher(task), train_dataset=Dataset.from_list(rows), **tools
    )


def gkd(task: dict[str, Any], directory: str, tools: dict[str, Any]) -> GKDTrainer:
    """The Jensen–Shannon divergence on the student's samples alone. It generates pass by pass."""
    options = GKDConfig(
        **common_options(task, directory),
        max_new_tokens=task["max_tokens"],
        lmbda=1.0,
        beta=0.5,
        train_sampling_strategy="sequential",
    )
    # Its collator needs an answer; lmbda 1 discards it, but the loss is still divided by its tokens.
    answer = [{"role": "assistant", "content": "A"}]
    rows = [{"messages": conversation + answer} for conversation in repeated(task)]
    trainer = GKDTrainer(
        args=options, teacher_model=teacher(task), train_dataset=Dataset.from_list(rows), **tools
    )
    trainer.generation_config.min_new_tokens = task["max_tokens"]
    return trainer


def repeated(task: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Each prompt once per sample."""
    return [
        conversation for conversation in read_conversations(task["prompts"]) for _ in range(task["samples"])
    ]


def student(task: dict[str, Any]) -> Any:
    dtype = torch.bfloat16 if task["peer"]["precision"] == "weights" else torch.float32
    return AutoModelForCausalLM.from_pretrained(task["model"], dtype=dtype)


def teacher(task: dict[str, Any]) -> Any:
    dtype = torch.float32 if task["peer"]["precision"] == "float32" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(task["model"], dtype=dtype)


def watch(trainer: Any, meter: Meter) -> None:
    """Wraps parts of ``trainer`` to count and time them, without changing what they do."""
    generate, compute_loss = trainer.model.generate, trainer.compute_loss

    def counted_generate(*arguments: Any, **keywords: Any) -> Any:
        output = generate(*arguments, **keywords)
        ids = output if torch.is_tensor(output) else output.sequences
        meter.count("samples", len(ids))
        meter.count("generated", len(ids) * (ids.shape[1] - keywords["input_ids"].shape[1]))
        return output

    def counted_loss(model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        mask = inputs["labels"] != -100 if "labels" in inputs else inputs["completion_mask"]
        meter.count("learned", int(mask.sum()))
        return compute_loss(model, inputs, *arguments, **keywords)

    trainer.model.generate = meter.timed("sampling", counted_generate)
    trainer.compute_loss = counted_loss
    if getattr(trainer, "teacher_model", None) is not None:
        layers = trainer.teacher_model.base_model  # without the head, which belongs to the loss
        layers.forward = meter.timed("teacher", layers.forward)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    meter = Meter()
    tools = {
        "model": student(task),
        "processing_class": AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
        "callbacks": [Marks(meter)],
    }
    methods = {"grpo": grpo, "distillation": distillation, "gkd": gkd}
    with tempfile.TemporaryDirectory() as directory:
        trainer = methods[task["method"]](task, directory, tools)
        watch(trainer, meter)
        trainer.train()
    meter.counts["optimizer steps"] = trainer.state.global_step - WARM_UP
    meter.report()


if __name__ == "__main__":
    main()
