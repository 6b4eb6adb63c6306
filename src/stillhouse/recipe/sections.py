"""The sections of a recipe: typed configuration of a whole run.

Each section is a frozen dataclass of plain values. The docstring under a field is its documentation
(``docs/recipe.md`` is generated from it), and its type includes the range of the value. Reading, overriding
and saving are in :mod:`stillhouse.recipe.load`, rules between fields in :mod:`stillhouse.recipe.validation`.
Ranges are checked when a file is read, not when a section is built in Python. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from stillhouse.divergences import OBJECTIVES, ObjectiveKind, ObjectiveName
from stillhouse.recipe.field_types import (
    ADDED,
    HoldsPath,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    ShareBelowOne,
    Text,
)
from stillhouse.recipe.on_policy import OnPolicy
from stillhouse.recipe.verifiers import Select, Verifier

Names = Annotated[tuple[Text, ...], MinLen(1)]
Indices = Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)]
Int32 = Le(2**31 - 1)
"""For columns of the corpus, which are 32-bit."""

Purpose = Literal["research", "personal", "commercial", "competing"]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Teacher model."""

    model: PathText
    """Reference: a directory, `file.gguf`, `embedded:smollm2`, `hub:org/name` or `api:https://host/v1#model`.
    The student's starting weights by default; a student from `scratch` needs a teacher."""
    system: Annotated[str, HoldsPath("file:")] | None = None
    """System prompt for every conversation that has none; `file:PATH` reads it from a text file."""
    examples: PathText | None = None
    """File of finished conversations (as `prompts.source`), placed before every conversation."""
    context: Literal["shared", "private"] = "shared"
    """`shared`: the student also reads `system` and `examples`. `private`: only the teacher does (context
    distillation)."""
    route: dict[str, str] = field(default_factory=dict)
    """In `teachers`: this teacher alone teaches prompts with these tags (columns), e.g. `{domain: code}`."""
    weight: PositiveFloat = 1.0
    """Weight, before normalising, in the average with those of `teachers` that have no `route`."""
    terms: str | None = None
    """Key in the terms table (`still terms`), if the reference does not identify the model's owner."""
    backend: Literal["auto", "torch", "llama.cpp"] = "auto"
    """Inference backend for local weights; `auto` uses llama.cpp for GGUF files if it is installed."""
    enable_thinking: bool | None = field(default=None, metadata=ADDED)
    """Whether the teacher thinks before it answers, for chat templates with this variable (Qwen3, GLM). An
    API gets it as `chat_template_kwargs`, which vLLM, SGLang and llama.cpp read."""
    reasoning_effort: Text | None = field(default=None, metadata=ADDED)
    """How long the teacher thinks, e.g. `low`: a field of an API's requests, or a variable of the template
    (gpt-oss)."""
    extra_body: dict[str, Any] = field(default_factory=dict, metadata=ADDED)
    """API: further fields of each request, e.g. `{thinking: {type: disabled}}`; `null` leaves a field out.
    They are recorded, so no secrets."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable with the API key; keys are never written in a recipe."""
    price_in: NonNegativeFloat | None = None
    """US dollars for a million prompt tokens, used by the plan and the budget."""
    price_out: NonNegativeFloat | None = None
    """US dollars for a million completion tokens."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters instead of full training (merged when the student is saved)."""

    rank: PositiveInt = 16
    """Rank of the weight update."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input."""
    targets: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get adapters."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """Student model and its starting weights."""

    init: Literal["pretrained", "scratch", "prune"] = "pretrained"
    """`pretrained` weights, a randomly initialised model (`scratch`), or a pruned model (`prune`)."""
    model: PathText | None = None
    """Reference of the starting weights (`pretrained`) or of the model to prune (default: the teacher)."""
    config: dict[str, Any] = field(default_factory=dict)
    """`scratch`: a transformers configuration, e.g. `{model_type: qwen3, hidden_size: 64}`."""
    tokenizer: PathText | None = None
    """`scratch`: reference of a model whose tokenizer the student uses (default: the teacher)."""
    vocabulary: Annotated[int, Ge(512), Le(2**20)] | None = None
    """`scratch`: train a byte-level tokenizer of this size on the corpus instead, with the teacher's special
    tokens and chat template."""
    layers: PositiveInt | None = None
    """`prune`: layers to keep; those with the least block influence are removed."""
    keep: Indices | None = None
    """`prune`: indices of the layers to keep, instead of measuring influence."""
    intermediate: PositiveInt | None = None
    """`prune`: MLP neurons to keep in each layer, by activation importance."""
    heads: PositiveInt | None = None
    """`prune`: key-value head groups to keep in each layer, by activation importance."""
    hidden: PositiveInt | None = None
    """`prune`: hidden channels to keep, by activation importance."""
    heal: bool = True
    """`prune`: replace each removed run of layers by a linear map (least squares on calibration text)."""
    calibration_tokens: PositiveInt = 8192
    """`prune`: tokens of training text for measuring importance."""
    template: Literal["own", "teacher"] = "own"
    """Chat template that the student is trained and saved with."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts for the teacher."""

    source: PathText
    """`package:mmlu`, `reasoning_gym:NAME?size=200&seed=7`, or files of prompts or finished conversations:
    .jsonl, .json, .parquet, .arrow, .csv, .tsv or .txt, a directory, or a pattern such as `data/*.jsonl`."""
    column: str | None = None
    """Column of the prompt (default: the first known one; docs/corpus.md lists them)."""
    answer: Text = "auto"
    """Column of the answer to learn. `auto`: `completion`, `output`, `response` or `chosen`, unless a
    verifier reads it; `none`: ask the teacher every question, also where the file has an answer."""
    tolerated_rejects: Share = 0.05
    """Share of records that may be unreadable, or refused by the student's chat template; they are rejected,
    and above it the run stops."""
    limit: PositiveInt | None = None
    """Use only this many prompts, drawn at random."""
    held_out: NonNegativeInt = 50
    """Prompts that are not trained on but measure the student."""


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Collection of the teacher's answers."""

    samples: PositiveInt = 1
    """Answers for each prompt."""
    temperature: NonNegativeFloat | None = None
    """Sampling temperature; 0 is greedy. Not set: 1 for local weights; an API uses its own default."""
    top_p: PositiveShare | None = None
    """Nucleus sampling: the smallest set of tokens with this probability. Not set: 1 for local weights; an
    API uses its own default."""
    top_k: Annotated[int, Ge(0), Int32] = 0
    """Sample from the k most likely tokens; 0: from all."""
    max_tokens: Annotated[int, Gt(0), Int32] = 512
    """Maximum length of an answer, in tokens."""
    top_logprobs: NonNegativeInt = 0
    """Alternatives for each token to request from an API that offers them."""
    concurrency: PositiveInt = 16
    """Maximum number of parallel requests; lowered automatically when the teacher limits the rate."""
    timeout_s: PositiveFloat = 120.0
    """Seconds after which a request without an answer is retried."""
    retries: NonNegativeInt = 6
    """Retries before a request counts as failed."""
    tolerated_failures: Share = 0.05
    """Share of all requests, those of earlier runs included, that may fail; above it the run stops, and the
    same command resumes it."""
    max_cost: NonNegativeFloat | None = None
    """Budget in US dollars; collection stops before exceeding it."""
    max_total_tokens: PositiveInt | None = None
    """Budget of prompt and completion tokens; collection stops before exceeding it."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Filters of the corpus. Answers without text are always dropped; corpus/rejects/ has every reject with
    its reason."""

    truncated: bool = True
    """Drop answers that `max_tokens` cut off."""
    content_filter: bool = field(default=True, metadata=ADDED)
    """Drop answers that the provider's content filter cut off."""
    refusals: bool = True
    """Drop refusals."""
    thoughts: bool = True
    """Keep the reasoning before an answer; `false` keeps only the answers."""
    min_chars: NonNegativeInt = 1
    """Minimum length of an answer, in characters."""
    max_chars: PositiveInt | None = None
    """Maximum length of an answer, in characters."""
    near_duplicates: PositiveShare | None = 0.9
    """Drop answers whose Jaccard similarity (word 3-grams) to an earlier one is at least this."""
    contamination_ngram: PositiveInt | None = 13
    """Drop training prompts that share a word n-gram of this length with a held-out prompt."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the student minimises."""

    kind: ObjectiveName = "forward_kl"
    """The divergence between teacher and student; `cross_entropy` uses the teacher's text only, `uld` sorted
    probabilities of any two vocabularies."""
    align: Literal["tokens", "spans"] = "tokens"
    """`tokens`: position by position, which needs one tokenizer (`uld`: the n-th token with the n-th).
    `spans`: for two tokenizers, the shortest spans of an answer that end a token on both sides."""
    temperature: PositiveFloat = 1.0
    """Softens both distributions; the loss is multiplied by its square."""
    beta: Share = 0.5
    """`jsd`: weight of the teacher in the mixture; 0 is forward KL, 1 is reverse KL, as limits."""
    alpha: Share = 0.1
    """`skew_*`: share of the other distribution in the mixture; 1 is invalid."""
    cross_entropy: Share = 0.0
    """Weight of cross-entropy on the text; the weight of the divergence is 1 minus this."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Tokens that count: those that the chat template marks as the assistant's, or all."""
    targets: Literal["hidden", "topk", "sampled", "online"] = "hidden"
    """How the teacher's distributions are stored: hidden states (exact), top-k ids, sampled ids, or not."""
    top_k: PositiveInt = 64
    """`topk`: ids per token; the rest is one tail bucket (on-policy too). `sampled`: draws per token."""

    @property
    def resolved_kind(self) -> ObjectiveKind:
        """What `kind` is with these parameters: `jsd` is forward KL at beta 0 and reverse KL at beta 1."""
        kind = OBJECTIVES[self.kind]
        for (parameter, value), name in kind.limits.items():
            if getattr(self, parameter) == value:
                return OBJECTIVES[name]
        return kind

    @property
    def cross_entropy_weight(self) -> float:
        """The weight of cross-entropy on the text; the divergence has the rest."""
        return self.cross_entropy if OBJECTIVES[self.kind].reads_teacher else 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss reads the teacher's probabilities, not only its text."""
        return self.cross_entropy_weight < 1

    @property
    def joins_tokenizers(self) -> bool:
        """Whether the teacher reads its own tokens, which need not be the student's."""
        return self.needs_teacher and (self.align == "spans" or not OBJECTIVES[self.kind].compares_tokens)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training of the student."""

    epochs: Annotated[float, Ge(0), Le(1e6)] = 1.0
    """Passes over the corpus (ignored if `tokens` is set); 0 skips this stage."""
    tokens: PositiveInt | None = None
    """Stop after this many tokens."""
    batch_tokens: PositiveInt = 4096
    """Tokens in each optimizer step."""
    micro_tokens: PositiveInt = 4096
    """Tokens in each forward and backward pass; smaller values save memory by gradient accumulation."""
    max_length: Annotated[int, Ge(2)] = 1024
    """Maximum length of a document, in tokens; longer ones are truncated."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """Learning rate schedule: warmup–stable–decay, cosine, or constant after warmup."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises."""
    decay: Share = 0.3
    """`wsd`: share of the steps in which the learning rate falls."""
    min_rate: Share = 0.0
    """Final learning rate, as a share of the peak."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    """AdamW's β₁ and β₂."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on matrices only."""
    clip: PositiveFloat = 1.0
    """Maximum gradient norm."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute type; master weights are always float32. `auto` uses bfloat16 if the processor supports it."""
    embeddings: bool = True
    """Train the token embeddings and the output head."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` …"""
    trackers: tuple[Literal["trackio", "tensorboard"], ...] = ()
    """Additional destinations of metrics; `metrics.jsonl` is always written."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measurement of the result."""

    control: bool = True
    """Also train the same student on the same tokens with cross-entropy only, for comparison."""
    prompts: NonNegativeInt = 5
    """Held-out prompts whose answers by every model the report shows side by side."""
    max_tokens: PositiveInt = 96
    """Maximum length of these answers, in tokens."""
    speed: bool = True
    """Measure speed in tokens/s."""
    confidence: Annotated[float, Gt(0), Le(0.9999)] = 0.95
    """Confidence level of the intervals."""
    samples: NonNegativeInt = 0
    """Answers to each held-out prompt for pass@1 and majority vote (needs `verifiers`); 0: none."""
    temperature: NonNegativeFloat = 0.6
    """Sampling temperature of these answers."""
    sample_tokens: PositiveInt = 512
    """Maximum length of these answers, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The configuration of a whole run."""

    name: Text
    """Name of the run, whose directory is runs/<name>."""
    teacher: Teacher
    """The main teacher, for all prompts that match no `route`."""
    prompts: Prompts
    teachers: tuple[Teacher, ...] = ()
    """More teachers, for prompts of their own (`route`) or averaged with the main one."""
    student: Student = field(default_factory=Student)
    collect: Collect = field(default_factory=Collect)
    filter: Filter = field(default_factory=Filter)
    verifiers: tuple[Verifier, ...] = ()
    """Checks of whether an answer is right, for rejection sampling, rewards and pass@1."""
    select: Select | None = None
    """Rejection sampling."""
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)
    on_policy: OnPolicy | None = None
    """Training on the student's own samples, after the corpus or (`train.epochs: 0`) instead of it."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    """Seed of every random choice."""
    purpose: Purpose = "research"
    """Purpose of the student, checked against the teacher's terms."""
    accept_terms: Text | None = None
    """Reason for accepting unknown terms; recorded permanently in the manifest and the model card."""
    license: str | None = None
    """Licence of the student, if the teacher's terms leave the choice."""

    @property
    def learns_offline(self) -> bool:
        """Whether the student is trained on the corpus."""
        return self.train.epochs > 0 or self.train.tokens is not None

    @property
    def needs_answers(self) -> bool:
        """Whether a stage other than evaluation needs the teacher's answers."""
        mixed = self.on_policy is not None and self.on_policy.off_policy > 0
        return self.learns_offline or mixed or self.student.init == "prune"
