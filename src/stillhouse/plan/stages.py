"""What each stage of a run would take, from workload, shapes and a machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.pages.numbers import format_count
from stillhouse.plan import costs
from stillhouse.plan.costs import Machine, Shape
from stillhouse.plan.workload import TYPICAL_ANSWER, Workload
from stillhouse.recipe import Recipe
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo

TORCH_BATCH = 48
"""Requests of one generate() call of the torch backend."""
LLAMA_SLOTS = 8
"""Requests that llama.cpp's server answers at once."""
SPEED_ROUNDS, SPEED_READ, SPEED_WRITTEN = 6, 128, 32
"""What evaluate times for every model: rounds, and tokens of each."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage would take."""

    name: str
    tokens: int
    """Read, written or trained on."""
    memory_bytes: int
    """At its peak, the whole process."""
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class PlanInputs:
    """All that the stages' costs follow from."""

    recipe: Recipe
    teacher_facts: ModelInfo
    teacher: Shape | None
    """None behind an API."""
    student: Shape
    workload: Workload
    machine: Machine
    other_teachers: tuple[Shape, ...] = ()
    """Those of the recipe's `teachers` that are not behind an API."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective compares distributions, not only text."""
        objective = self.recipe.objective
        return objective.kind != "cross_entropy" and objective.cross_entropy < 1 and self.teacher is not None

    @property
    def resident(self) -> float:
        """Bytes that are there in every stage after collecting: Python, torch and the teachers in float32."""
        return costs.BASE_MEMORY + sum(4 * shape.parameters for shape in self.teachers)

    @property
    def teachers(self) -> list[Shape]:
        """All that are in memory."""
        return [*([self.teacher] if self.teacher else []), *self.other_teachers]


def plan_stages(inputs: PlanInputs) -> list[StagePlan]:
    """The stages in their order; those that would do nothing are left out."""
    recipe = inputs.recipe
    stages = [_collect(inputs), _filter(inputs)]
    if recipe.select is not None:
        stages.append(_select(inputs))
    stages.append(_student(inputs))
    if recipe.learns_offline:
        if inputs.needs_teacher and recipe.objective.targets != "online":
            stages.append(_targets(inputs))
        stages.append(_arm(inputs, "train", teaches=inputs.needs_teacher))
        if inputs.needs_teacher and recipe.evaluate.control:
            stages.append(_arm(inputs, "control", teaches=False))
    if recipe.on_policy is not None:
        stages.append(_on_policy(inputs, recipe.on_policy))
    return [*stages, _evaluate(inputs)]


def _collect(inputs: PlanInputs) -> StagePlan:
    workload, machine = inputs.workload, inputs.machine
    if not workload.requests:
        return StagePlan("collect", 0, costs.BASE_MEMORY, 1.0, "all prompts have answers already")
    tokens = round(workload.prompt_tokens + workload.new_tokens)
    memory: float = costs.BASE_MEMORY
    if inputs.teacher is None:
        backend = "API"
        each = workload.new_tokens / workload.requests
        seconds = costs.api_seconds(workload.requests, each, inputs.recipe.collect.concurrency)
    elif (backend := _backend(inputs)) == "llama.cpp":
        size = inputs.teacher_facts.size_bytes or inputs.teacher.parameters
        memory += size
        seconds = 2.0 + costs.llama_generation_seconds(
            inputs.teacher, size, workload.prompt_tokens, workload.new_tokens, LLAMA_SLOTS, machine
        )
    else:
        batch = min(TORCH_BATCH, inputs.recipe.collect.concurrency, workload.requests)
        memory += inputs.teacher.parameters * (2 if machine.fast_bfloat16 else 4)
        seconds = _load_seconds(inputs) + costs.torch_generation_seconds(
            inputs.teacher, workload.prompt_tokens, workload.new_tokens, batch, machine
        )
    return StagePlan(
        "collect", tokens, round(memory), seconds, f"{workload.requests:,.0f} requests, {backend}"
    )


def _filter(inputs: PlanInputs) -> StagePlan:
    tokens = round(inputs.workload.train_documents * inputs.workload.document_tokens)
    return StagePlan("filter", tokens, costs.BASE_MEMORY, 1.0)


def _select(inputs: PlanInputs) -> StagePlan:
    """Scoring every answer that may be learned from."""
    answers = inputs.workload.train_documents
    seconds = 1.0 + _scoring_seconds(inputs, answers)
    return StagePlan("select", 0, costs.BASE_MEMORY, seconds, f"{answers:,.0f} answers")


def _scoring_seconds(inputs: PlanInputs, answers: float) -> float:
    """Of all verifiers, one answer after the other."""
    return answers * sum(costs.VERIFY_S.get(each.kind, costs.COMPARE_S) for each in inputs.recipe.verifiers)


def _student(inputs: PlanInputs) -> StagePlan:
    """Loading the teacher falls here: it stays in memory from now on."""
    workload, student = inputs.workload, inputs.student
    seconds = costs.IMPORT_S + (_load_seconds(inputs) if inputs.teacher else 0.0)
    seconds += 2 * student.parameters * costs.SAFETENSORS_LOAD_S  # written, and read again
    tokens = 0
    if inputs.recipe.student.init == "prune" and inputs.teacher is not None:
        corpus = workload.train_documents * workload.document_tokens
        tokens = round(min(inputs.recipe.student.calibration_tokens, corpus))
        flops = costs.forward_flops(inputs.teacher, tokens, context=workload.document_tokens, head_tokens=0)
        seconds += 2 * costs.pass_seconds(flops, inputs.machine, bfloat16=False)  # measured, and healed
    memory = inputs.resident + 4 * student.parameters
    note = f"{format_count(student.parameters)} parameters"
    return StagePlan("student", tokens, round(memory), seconds, note)


def _targets(inputs: PlanInputs) -> StagePlan:
    kind = inputs.recipe.objective.targets
    tokens = inputs.workload.train_documents * inputs.workload.document_tokens
    head_tokens = 0 if kind == "hidden" else tokens * inputs.workload.counted
    seconds = _teacher_seconds(inputs, tokens, head_tokens)
    return StagePlan("targets", round(tokens), round(inputs.resident), seconds, kind)


def _arm(inputs: PlanInputs, name: str, *, teaches: bool) -> StagePlan:
    """One training run: with the teacher's distributions, or (the control) on its text alone."""
    tokens = inputs.workload.trained_tokens
    counted = tokens * inputs.workload.counted
    steps = max(1.0, tokens / inputs.recipe.train.batch_tokens)
    seconds, memory = _learning(
        inputs, tokens, counted, inputs.workload.document_tokens, steps, teaches=teaches
    )
    if teaches and inputs.teacher is not None:
        targets = inputs.recipe.objective.targets
        seconds += _teacher_seconds(
            inputs, tokens if targets == "online" else 0, counted if targets in ("hidden", "online") else 0
        )
    return StagePlan(name, round(tokens), round(memory), seconds, f"{steps:,.0f} steps")


def _on_policy(inputs: PlanInputs, settings: OnPolicy) -> StagePlan:
    """Sampling from the student, the teacher's pass over the samples, and learning from them."""
    workload = inputs.workload
    rounds = settings.rounds * (1 - settings.off_policy)
    prompt = max(1.0, workload.document_tokens - min(inputs.recipe.collect.max_tokens, TYPICAL_ANSWER))
    answer = min(settings.max_tokens, TYPICAL_ANSWER)
    samples = rounds * settings.prompts * settings.samples
    tokens, counted = samples * (prompt + answer), samples * answer
    batch = min(TORCH_BATCH, settings.prompts * settings.samples)
    sampling = costs.torch_generation_seconds(
        inputs.student, rounds * settings.prompts * prompt, counted, batch, inputs.machine
    )
    steps = settings.rounds * settings.policy.inner_steps
    taught = settings.teacher > 0 and inputs.teacher is not None
    seconds, memory = _learning(inputs, tokens, counted, prompt + answer, steps, teaches=taught)
    if taught:
        seconds += _teacher_seconds(inputs, tokens, counted)
    if settings.reward:
        seconds += _scoring_seconds(inputs, samples)
    note = f"{settings.rounds:,} rounds, {samples:,.0f} samples"
    return StagePlan("on_policy", round(tokens), round(memory), sampling + seconds, note)


def _learning(
    inputs: PlanInputs, tokens: float, counted: float, context: float, steps: float, *, teaches: bool
) -> tuple[float, float]:
    """Seconds and bytes of the student's own passes, losses and updates."""
    train, lora, student = inputs.recipe.train, inputs.recipe.student.lora, inputs.student
    bfloat16 = inputs.machine.fast_bfloat16 if train.dtype == "auto" else train.dtype == "bfloat16"
    learns_head = train.embeddings and lora is None
    trained = student.parameters if learns_head else student.body
    if lora is not None:
        # An update of rank r of an n × m matrix has r (n + m) numbers; seven matrices a layer.
        trained = student.layers * 7 * lora.rank * (student.hidden + student.intermediate)
    flops = costs.training_flops(
        student, tokens, context=context, head_tokens=counted, weights=lora is None, head=learns_head
    )
    seconds = (
        costs.pass_seconds(flops, inputs.machine, bfloat16=bfloat16)
        + costs.loss_seconds(counted, student.vocab, inputs.machine, divergence=teaches)
        + costs.optimizer_seconds(steps, trained, inputs.machine)
    )
    teacher_head = inputs.teacher.head if teaches and inputs.teacher is not None else 0
    micro = min(train.micro_tokens, train.batch_tokens)
    memory = costs.training_memory(student, trained, micro, bfloat16=bfloat16, teacher_head=teacher_head)
    return seconds, inputs.resident + memory


def _evaluate(inputs: PlanInputs) -> StagePlan:
    """Teacher, student before and after, and control: all in memory at once, in float32."""
    settings, workload, machine = inputs.recipe.evaluate, inputs.workload, inputs.machine
    offline = inputs.recipe.learns_offline
    models = [inputs.student] * (3 if settings.control and inputs.needs_teacher and offline else 2)
    models += [inputs.student] if inputs.recipe.on_policy is not None and offline else []
    models += inputs.teachers
    text = workload.held_out_documents * workload.document_tokens
    written = min(settings.prompts, workload.held_out_documents) * settings.max_tokens
    rounds = SPEED_ROUNDS if settings.speed else 0
    seconds = 0.0
    for shape in models:
        flops = costs.forward_flops(
            shape,
            text + rounds * 2 * SPEED_READ,
            context=workload.document_tokens,
            head_tokens=text * workload.counted,
        )
        seconds += costs.pass_seconds(flops, machine, bfloat16=False)
        one_token = costs.weights_read_seconds(4 * shape.parameters, machine)
        seconds += (written + rounds * SPEED_WRITTEN) * one_token
        seconds += _sampled_seconds(inputs, shape)
    memory = costs.BASE_MEMORY + sum(4 * shape.parameters for shape in models)
    return StagePlan("evaluate", round(text * len(models)), round(memory), seconds, f"{len(models)} models")


def _sampled_seconds(inputs: PlanInputs, shape: Shape) -> float:
    """The answers from which pass@1 and the majority vote are taken, and scoring them."""
    settings, asked = inputs.recipe.evaluate, inputs.workload.held_out_documents
    answers = settings.samples * asked
    if not answers:
        return 0.0
    written = answers * min(settings.sample_tokens, TYPICAL_ANSWER)
    read = asked * inputs.workload.document_tokens
    batch = min(TORCH_BATCH, answers)
    writing = costs.torch_generation_seconds(shape, read, written, batch, inputs.machine)
    return writing + _scoring_seconds(inputs, answers)


def _teacher_seconds(inputs: PlanInputs, tokens: float, head_tokens: float) -> float:
    """The teacher's layers over ``tokens``, and its head over ``head_tokens``."""
    assert inputs.teacher is not None
    flops = costs.forward_flops(
        inputs.teacher, tokens, context=inputs.workload.document_tokens, head_tokens=head_tokens
    )
    return costs.pass_seconds(flops, inputs.machine, bfloat16=inputs.machine.fast_bfloat16)


def _backend(inputs: PlanInputs) -> str:
    wanted = inputs.recipe.teacher.backend
    if wanted != "auto":
        return wanted
    return "llama.cpp" if _is_gguf(inputs) and importlib.util.find_spec("xllamacpp") else "torch"


def _load_seconds(inputs: PlanInputs) -> float:
    assert inputs.teacher is not None
    return inputs.teacher.parameters * (costs.GGUF_LOAD_S if _is_gguf(inputs) else costs.SAFETENSORS_LOAD_S)


def _is_gguf(inputs: PlanInputs) -> bool:
    return inputs.teacher_facts.kind in ("gguf", "embedded")
