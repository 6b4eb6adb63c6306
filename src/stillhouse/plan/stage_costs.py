"""Estimates the cost of each stage of a run from its workload, the models' shapes and the machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.pages.numbers import format_count
from stillhouse.plan import cost_formulas
from stillhouse.plan.cost_formulas import Machine, Shape
from stillhouse.plan.workload import TYPICAL_ANSWER, Workload
from stillhouse.recipe import Evaluate, Recipe, Verifier
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt
    from stillhouse.models import ModelInfo

TORCH_BATCH = 48
"""Requests of one generate() call of the torch backend."""
LLAMA_SLOTS = 8
"""Requests that llama.cpp's server answers in parallel."""


@dataclass(frozen=True)
class StagePlan:
    """The estimated cost of one stage."""

    name: str
    tokens: int
    """Tokens read, generated or trained on."""
    memory_bytes: int
    """Peak memory of the whole process."""
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class PlanInputs:
    """Everything that the costs of the stages depend on."""

    recipe: Recipe
    teacher_info: ModelInfo
    teacher: Shape | None
    """None for a teacher behind an API."""
    student: Shape
    workload: Workload
    machine: Machine
    other_teachers: tuple[Shape, ...] = ()
    """Shapes of the recipe's additional `teachers` that are not behind an API."""
    prompts: tuple[Prompt, ...] = ()
    """All prompts, those held out included."""
    records: dict[str, Any] = field(default_factory=dict)
    """Facts about reading the prompts; see :class:`.run_plan.RunPlan`."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective compares distributions, not only text."""
        return self.recipe.objective.needs_teacher and self.teacher is not None

    @property
    def resident(self) -> float:
        """Bytes in memory in every stage after collecting: Python, torch and the teachers in float32."""
        return cost_formulas.BASE_MEMORY + sum(4 * shape.parameters for shape in self.teachers)

    @property
    def teachers(self) -> list[Shape]:
        """Shapes of all teachers that are in memory."""
        return [*([self.teacher] if self.teacher else []), *self.other_teachers]


def plan_stages(inputs: PlanInputs) -> list[StagePlan]:
    """The stages in order, without those that have nothing to do."""
    recipe = inputs.recipe
    stages = [_collect(inputs), _filter(inputs)]
    if recipe.select is not None:
        stages.append(_select(inputs))
    stages.append(_student(inputs))
    if recipe.learns_offline:
        if inputs.needs_teacher and recipe.objective.targets != "online":
            stages.append(_targets(inputs))
        stages.append(_arm(inputs, "train", uses_teacher=inputs.needs_teacher))
        if inputs.needs_teacher and recipe.evaluate.control:
            stages.append(_arm(inputs, "control", uses_teacher=False))
    if recipe.on_policy is not None:
        stages.append(_on_policy(inputs, recipe.on_policy))
    return [*stages, _evaluate(inputs)]


def _collect(inputs: PlanInputs) -> StagePlan:
    workload, machine = inputs.workload, inputs.machine
    if not workload.requests:
        return StagePlan("collect", 0, cost_formulas.BASE_MEMORY, 1.0, "all prompts already have answers")
    tokens = round(workload.prompt_tokens + workload.new_tokens)
    memory: float = cost_formulas.BASE_MEMORY
    if inputs.teacher is None:
        backend = "API"
        each = workload.new_tokens / workload.requests
        seconds = cost_formulas.api_seconds(workload.requests, each, inputs.recipe.collect.concurrency)
    elif (backend := _backend(inputs)) == "llama.cpp":
        size = inputs.teacher_info.size_bytes or inputs.teacher.parameters
        memory += size
        seconds = 2.0 + cost_formulas.llama_generation_seconds(
            inputs.teacher, size, workload.prompt_tokens, workload.new_tokens, LLAMA_SLOTS, machine
        )
    else:
        batch = min(TORCH_BATCH, inputs.recipe.collect.concurrency, workload.requests)
        memory += inputs.teacher.parameters * (2 if machine.fast_bfloat16 else 4)
        seconds = _load_seconds(inputs) + cost_formulas.torch_generation_seconds(
            inputs.teacher, workload.prompt_tokens, workload.new_tokens, batch, machine
        )
    return StagePlan(
        "collect", tokens, round(memory), seconds, f"{workload.requests:,.0f} requests, {backend}"
    )


def _filter(inputs: PlanInputs) -> StagePlan:
    tokens = round(inputs.workload.train_documents * inputs.workload.document_tokens)
    return StagePlan("filter", tokens, cost_formulas.BASE_MEMORY, 1.0)


def _select(inputs: PlanInputs) -> StagePlan:
    """Scores every training answer."""
    answers = inputs.workload.train_documents
    seconds = 1.0 + _scoring_seconds(inputs.recipe.verifiers, answers)
    return StagePlan("select", 0, cost_formulas.BASE_MEMORY, seconds, f"{answers:,.0f} answers")


def _scoring_seconds(verifiers: Sequence[Verifier], answers: float) -> float:
    """Seconds of all verifiers, one answer after another."""
    return answers * sum(cost_formulas.VERIFY_S.get(v.kind, cost_formulas.COMPARE_S) for v in verifiers)


def _student(inputs: PlanInputs) -> StagePlan:
    """Includes loading the teacher, which stays in memory from this stage on."""
    workload, student = inputs.workload, inputs.student
    seconds = cost_formulas.IMPORT_S + (_load_seconds(inputs) if inputs.teacher else 0.0)
    seconds += 2 * student.parameters * cost_formulas.SAFETENSORS_LOAD_S  # written, and read again
    tokens = 0
    if inputs.recipe.student.init == "prune" and inputs.teacher is not None:
        corpus = workload.train_documents * workload.document_tokens
        tokens = round(min(inputs.recipe.student.calibration_tokens, corpus))
        flops = cost_formulas.forward_flops(
            inputs.teacher, tokens, context=workload.document_tokens, head_tokens=0
        )
        # one pass measures importance, one fits the repair
        seconds += 2 * cost_formulas.pass_seconds(flops, inputs.machine, bfloat16=False)
    memory = inputs.resident + 4 * student.parameters
    note = f"{format_count(student.parameters)} parameters"
    return StagePlan("student", tokens, round(memory), seconds, note)


def _targets(inputs: PlanInputs) -> StagePlan:
    kind = inputs.recipe.objective.targets
    tokens = inputs.workload.train_documents * inputs.workload.document_tokens
    head_tokens = 0 if kind == "hidden" else tokens * inputs.workload.counted
    seconds = _teacher_seconds(inputs, tokens, head_tokens)
    return StagePlan("targets", round(tokens), round(inputs.resident), seconds, kind)


def _arm(inputs: PlanInputs, name: str, *, uses_teacher: bool) -> StagePlan:
    """One training run: with the teacher's distributions, or on its text alone (the control)."""
    tokens = inputs.workload.trained_tokens
    counted = tokens * inputs.workload.counted
    steps = max(1.0, tokens / inputs.recipe.train.batch_tokens)
    seconds, memory = _learning(
        inputs, tokens, counted, inputs.workload.document_tokens, steps, uses_teacher=uses_teacher
    )
    if uses_teacher and inputs.teacher is not None:
        targets = inputs.recipe.objective.targets
        seconds += _teacher_seconds(
            inputs, tokens if targets == "online" else 0, counted if targets in ("hidden", "online") else 0
        )
    unit = "step" if round(steps) == 1 else "steps"
    return StagePlan(name, round(tokens), round(memory), seconds, f"{steps:,.0f} {unit}")


def _on_policy(inputs: PlanInputs, settings: OnPolicy) -> StagePlan:
    """Samples from the student, a teacher pass over the samples, and training on them."""
    workload = inputs.workload
    rounds = settings.rounds * (1 - settings.off_policy)
    prompt = max(1.0, workload.document_tokens - min(inputs.recipe.collect.max_tokens, TYPICAL_ANSWER))
    answer = min(settings.max_tokens, TYPICAL_ANSWER)
    samples = rounds * settings.prompts * settings.samples
    tokens, counted = samples * (prompt + answer), samples * answer
    batch = min(TORCH_BATCH, settings.prompts * settings.samples)
    sampling = cost_formulas.torch_generation_seconds(
        inputs.student, rounds * settings.prompts * prompt, counted, batch, inputs.machine
    )
    steps = settings.rounds * settings.policy.inner_steps
    uses_teacher = settings.teacher > 0 and inputs.teacher is not None
    seconds, memory = _learning(inputs, tokens, counted, prompt + answer, steps, uses_teacher=uses_teacher)
    if uses_teacher:
        seconds += _teacher_seconds(inputs, tokens, counted)
    if settings.reward:
        seconds += _scoring_seconds(inputs.recipe.verifiers, samples)
    note = f"{settings.rounds:,} rounds, {samples:,.0f} samples"
    return StagePlan("on_policy", round(tokens), round(memory), sampling + seconds, note)


def _learning(
    inputs: PlanInputs, tokens: float, counted: float, context: float, steps: float, *, uses_teacher: bool
) -> tuple[float, float]:
    """Seconds and bytes of the student's passes, losses and updates."""
    train, lora, student = inputs.recipe.train, inputs.recipe.student.lora, inputs.student
    bfloat16 = inputs.machine.fast_bfloat16 if train.dtype == "auto" else train.dtype == "bfloat16"
    trains_head = train.embeddings and lora is None
    trained = student.parameters if trains_head else student.body
    if lora is not None:
        # A rank-r update of an n × m matrix has r (n + m) parameters; seven matrices per layer.
        trained = student.layers * 7 * lora.rank * (student.hidden + student.intermediate)
    flops = cost_formulas.training_flops(
        student, tokens, context=context, head_tokens=counted, weights=lora is None, head=trains_head
    )
    seconds = (
        cost_formulas.pass_seconds(flops, inputs.machine, bfloat16=bfloat16)
        + cost_formulas.loss_seconds(counted, student.vocab, inputs.machine, divergence=uses_teacher)
        + cost_formulas.optimizer_seconds(steps, trained, inputs.machine)
    )
    teacher_head = inputs.teacher.head if uses_teacher and inputs.teacher is not None else 0
    micro = min(train.micro_tokens, train.batch_tokens)
    memory = cost_formulas.training_memory(
        student, trained, micro, bfloat16=bfloat16, teacher_head=teacher_head
    )
    return seconds, inputs.resident + memory


def _evaluate(inputs: PlanInputs) -> StagePlan:
    """Teacher, student before and after training, and control, all in memory at once in float32."""
    settings, workload, machine = inputs.recipe.evaluate, inputs.workload, inputs.machine
    offline = inputs.recipe.learns_offline
    models = [inputs.student] * (3 if settings.control and inputs.needs_teacher and offline else 2)
    models += [inputs.student] if inputs.recipe.on_policy is not None and offline else []
    models += inputs.teachers
    text = workload.held_out_documents * workload.document_tokens
    written = min(settings.prompts, workload.held_out_documents) * settings.max_tokens
    speed_read, speed_written = _speed_tokens() if settings.speed else (0, 0)
    seconds = 0.0
    for shape in models:
        flops = cost_formulas.forward_flops(
            shape,
            text + speed_read,
            context=workload.document_tokens,
            head_tokens=text * workload.counted,
        )
        seconds += cost_formulas.pass_seconds(flops, machine, bfloat16=False)
        one_token = cost_formulas.weights_read_seconds(4 * shape.parameters, machine)
        seconds += (written + speed_written) * one_token
        seconds += _sampled_seconds(inputs, shape)
    memory = cost_formulas.BASE_MEMORY + sum(4 * shape.parameters for shape in models)
    return StagePlan("evaluate", round(text * len(models)), round(memory), seconds, f"{len(models)} models")


def _speed_tokens() -> tuple[int, int]:
    """Tokens that the speed measurement reads and generates with every model, the warm-up round included.

    In each round a model reads the text twice: to score it, and before it generates.
    """
    from stillhouse.evaluate.compare import SPEED_TOKENS
    from stillhouse.evaluate.speed import NEW_TOKENS, ROUNDS, WARM_UP_TOKENS

    return 2 * (ROUNDS + 1) * SPEED_TOKENS, ROUNDS * NEW_TOKENS + WARM_UP_TOKENS


def _sampled_seconds(inputs: PlanInputs, shape: Shape) -> float:
    """Seconds to sample and score the answers for pass@1 and the majority vote."""
    prompts = inputs.workload.held_out_documents
    read = prompts * inputs.workload.document_tokens
    recipe = inputs.recipe
    return answering_seconds(shape, prompts, read, recipe.evaluate, recipe.verifiers, inputs.machine)


def answering_seconds(
    shape: Shape,
    prompts: int,
    read: float,
    settings: Evaluate,
    verifiers: Sequence[Verifier],
    machine: Machine,
) -> float:
    """Seconds to sample ``settings.samples`` answers to every prompt and to score them.

    Args:
        read: tokens of all prompts together.
    """
    answers = settings.samples * prompts
    if not answers:
        return 0.0
    written = answers * min(settings.sample_tokens, TYPICAL_ANSWER)
    batch = min(TORCH_BATCH, answers)
    generation = cost_formulas.torch_generation_seconds(shape, read, written, batch, machine)
    return generation + _scoring_seconds(verifiers, answers)


def _teacher_seconds(inputs: PlanInputs, tokens: float, head_tokens: float) -> float:
    """Seconds of the teacher's layers over ``tokens`` and its head over ``head_tokens``."""
    assert inputs.teacher is not None
    flops = cost_formulas.forward_flops(
        inputs.teacher, tokens, context=inputs.workload.document_tokens, head_tokens=head_tokens
    )
    return cost_formulas.pass_seconds(flops, inputs.machine, bfloat16=inputs.machine.fast_bfloat16)


def _backend(inputs: PlanInputs) -> str:
    backend = inputs.recipe.teacher.backend
    if backend != "auto":
        return backend
    return "llama.cpp" if _is_gguf(inputs) and importlib.util.find_spec("xllamacpp") else "torch"


def _load_seconds(inputs: PlanInputs) -> float:
    assert inputs.teacher is not None
    return inputs.teacher.parameters * (
        cost_formulas.GGUF_LOAD_S if _is_gguf(inputs) else cost_formulas.SAFETENSORS_LOAD_S
    )


def _is_gguf(inputs: PlanInputs) -> bool:
    return inputs.teacher_info.kind in ("gguf", "embedded")
