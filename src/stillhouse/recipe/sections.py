"""The one configuration: what to do, as typed sections of a YAML file.

Each section is a frozen dataclass of plain values; the docstring under a field is
its documentation (``docs/recipe.md`` is made from it), and the range a value may
have stands in its type. Reading, overriding and saving live in
:mod:`stillhouse.recipe.load`, rules between fields in :mod:`stillhouse.recipe.validation`.
Ranges are checked when a file is read, not when a section is built in Python.
Nothing here imports anything heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from stillhouse.objectives import OBJECTIVES, ObjectiveKind, ObjectiveName
from stillhouse.recipe.field_types import (
    NonNegativeFloat,
    NonNegativeInt,
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
Largest = Le(2**31 - 1)

Purpose = Literal["research", "personal", "commercial", "competing"]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who is learned from."""

    model: Text
    """Reference: a directory, `file.gguf`, `embedded:smollm2`, `hub:org/name` or `api:https://host/v1#model`."""
    system: str | None = None
    """A system prompt put before every conversation that has none; `file:PATH` reads it from a text file."""
    examples: str | None = None
    """File of finished conversations (as `prompts.source`) shown before every conversation."""
    context: Literal["shared", "private"] = "shared"
    """Whether the student reads `system` and `examples` too, or they are the teacher's alone: context
    distillation."""
    route: dict[str, str] = field(default_factory=dict)
    """One of `teachers`: it alone teaches the prompts with these tags (columns), e.g. `{domain: code}`."""
    weight: PositiveFloat = 1.0
    """Share, before normalising, in the average with those of `teachers` that have no `route`."""
    terms: str | None = None
    """Key in the terms table (`still terms`), when the reference does not tell whose model it is."""
    backend: Literal["auto", "torch", "llama.cpp"] = "auto"
    """What generates for local weights; `auto` takes llama.cpp for GGUF files when it is installed."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable that holds the API key; keys are never written in a recipe."""
    price_in: NonNegativeFloat | None = None
    """US dollars for a million prompt tokens, for the plan and the budget."""
    price_out: NonNegativeFloat | None = None
    """US dollars for a million completion tokens."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters instead of full training (merged on export)."""

    rank: PositiveInt = 16
    """Rank of the update."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input."""
    targets: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get adapters."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """Who learns, and what it starts from."""

    init: Literal["pretrained", "scratch", "prune"] = "pretrained"
    """`pretrained` weights, a random `scratch` model, or the parent model with parts `prune`d."""
    model: Text | None = None
    """Reference of the starting weights (`pretrained`), or of the model to prune (default: the teacher)."""
    config: dict[str, Any] = field(default_factory=dict)
    """`scratch`: a transformers configuration, e.g. `{model_type: qwen3, hidden_size: 64}`."""
    tokenizer: Text | None = None
    """`scratch`: reference whose tokenizer the student uses (default: the teacher's)."""
    vocabulary: Annotated[int, Ge(512), Le(2**20)] | None = None
    """`scratch`: train a byte-level tokenizer of so many tokens on the corpus instead; special tokens and
    chat template are the teacher's."""
    layers: PositiveInt | None = None
    """`prune`: how many layers stay; those of least block influence go."""
    keep: Indices | None = None
    """`prune`: the exact layers that stay, instead of measuring."""
    intermediate: PositiveInt | None = None
    """`prune`: how many MLP neurons stay in each layer, by activation importance."""
    heads: PositiveInt | None = None
    """`prune`: how many key-value head groups stay in each layer, by activation importance."""
    hidden: PositiveInt | None = None
    """`prune`: how many hidden channels stay, by activation importance."""
    heal: bool = True
    """`prune`: fit a linear map (least squares, calibration text) in place of each removed run of layers."""
    calibration_tokens: PositiveInt = 8192
    """`prune`: tokens of training text on which importance is measured."""
    template: Literal["own", "teacher"] = "own"
    """Whose chat template the student is trained and saved with."""
    lora: Lora | None = None
    """Train low-rank adapters instead of all weights."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What the teacher is asked."""

    source: Text
    """`package:mmlu`, `reasoning_gym:NAME?size=200&seed=7`, or a .jsonl, .json, .parquet, .csv or .txt
    file of prompts or finished exchanges."""
    column: str | None = None
    """Column that holds the prompt (default: `messages`, `prompt`, `question`, `instruction` or `text`)."""
    limit: PositiveInt | None = None
    """Take only this many prompts, drawn by the seed."""
    held_out: NonNegativeInt = 50
    """How many prompts are kept from training and used to measure the student."""


@dataclass(frozen=True, kw_only=True)
class Collect:
    """How the teacher is asked."""

    samples: PositiveInt = 1
    """Answers for each prompt."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveShare = 1.0
    """Nucleus: the smallest set of tokens with this probability."""
    top_k: Annotated[int, Ge(0), Largest] = 0
    """Only the k likeliest tokens; 0 is all."""
    max_tokens: Annotated[int, Gt(0), Largest] = 512
    """Longest answer, in tokens."""
    top_logprobs: NonNegativeInt = 0
    """Ask an API for this many alternatives a token, where it offers them."""
    concurrency: PositiveInt = 16
    """Most requests under way at once; lowered by itself when the teacher pushes back."""
    timeout_s: PositiveFloat = 120.0
    """Seconds without an answer after which a request is tried again."""
    retries: NonNegativeInt = 6
    """Tries after the first before a request counts as failed."""
    tolerated_failures: Share = 0.05
    """Share of requests that may stay without an answer; with more the run stops, to be gone on with."""
    max_cost: NonNegativeFloat | None = None
    """US dollars after which collecting stops cleanly."""
    max_total_tokens: PositiveInt | None = None
    """Prompt and completion tokens after which collecting stops cleanly."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which exchanges are kept. An answer without text is always dropped; corpus/rejects/ holds every reject
    with its reason."""

    truncated: bool = True
    """Drop answers cut off by `max_tokens`."""
    refusals: bool = True
    """Drop answers that decline to answer."""
    thoughts: bool = True
    """Learn the thoughts before an answer too; without them only the answers are kept."""
    min_chars: NonNegativeInt = 1
    """Shortest answer, in characters."""
    max_chars: PositiveInt | None = None
    """Longest answer, in characters."""
    near_duplicates: PositiveShare | None = 0.9
    """Drop an answer whose estimated Jaccard similarity to an earlier one is at least this."""
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
    """How the teacher's distributions are stored: hidden states (exact), top-k, drawn ids, or not at all."""
    top_k: PositiveInt = 64
    """`topk`: entries a token; the rest is one tail bucket (on-policy too). `sampled`: draws a token."""

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
    """How the student is trained."""

    epochs: Annotated[float, Ge(0), Le(1e6)] = 1.0
    """Passes over the corpus (ignored when `tokens` is set); 0 leaves this stage out."""
    tokens: PositiveInt | None = None
    """Stop after this many tokens."""
    batch_tokens: PositiveInt = 4096
    """Tokens in an optimizer step."""
    micro_tokens: PositiveInt = 4096
    """Tokens in one forward and backward pass; smaller saves memory by accumulating."""
    max_length: Annotated[int, Ge(2)] = 1024
    """Longest document; longer ones are cut at the end."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    """Warm-up–stable–decay, cosine, or constant after warm-up."""
    warmup: Share = 0.05
    """Share of the steps in which the rate rises."""
    decay: Share = 0.3
    """`wsd`: share of the steps in which the rate falls."""
    min_rate: Share = 0.0
    """The rate at the end, as a share of the peak."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    """AdamW's averages."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on matrices only."""
    clip: PositiveFloat = 1.0
    """Largest gradient norm."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute type; master weights are always float32. `auto` takes bfloat16 where the processor has it."""
    embeddings: bool = True
    """Train the token embeddings and the head too."""
    checkpoint_every: PositiveInt = 50
    """Steps between checkpoints."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` …"""
    trackers: tuple[Literal["trackio", "tensorboard"], ...] = ()
    """Where metrics also go; `metrics.jsonl` is always written."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How the result is measured."""

    control: bool = True
    """Also train the same student on the same tokens with cross-entropy only, and compare."""
    prompts: NonNegativeInt = 5
    """Held-out prompts that every model answers side by side in the report."""
    max_tokens: PositiveInt = 96
    """Longest answer there, in tokens."""
    speed: bool = True
    """Measure tokens/s."""
    confidence: Annotated[float, Gt(0), Le(0.9999)] = 0.95
    """Level of the intervals."""
    samples: NonNegativeInt = 0
    """Answers to each held-out prompt for pass@1 and majority vote (needs `verifiers`); 0 takes none."""
    temperature: NonNegativeFloat = 0.6
    """Sampling temperature of those."""
    sample_tokens: PositiveInt = 512
    """Longest of those, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    name: Text
    """Name of the run; its directory is runs/<name>."""
    teacher: Teacher
    """The main teacher: all prompts that are nobody else's."""
    prompts: Prompts
    teachers: tuple[Teacher, ...] = ()
    """More teachers: of prompts of their own (`route`), or averaged with the main one."""
    student: Student = field(default_factory=Student)
    collect: Collect = field(default_factory=Collect)
    filter: Filter = field(default_factory=Filter)
    verifiers: tuple[Verifier, ...] = ()
    """What makes an answer right; rejection sampling and pass@1 come from it."""
    select: Select | None = None
    """Rejection sampling."""
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)
    on_policy: OnPolicy | None = None
    """After (or, with `train.epochs: 0`, instead of) learning from the corpus."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    """Every random choice comes from this."""
    purpose: Purpose = "research"
    """What the student is for; held against the teacher's terms."""
    accept_terms: Text | None = None
    """Why unknown terms are accepted; recorded in the manifest and the model card for good."""
    license: str | None = None
    """Licence of the student, where the teacher's terms leave the choice."""

    @property
    def learns_offline(self) -> bool:
        """Whether the student learns from the corpus before (or without) its own samples."""
        return self.train.epochs > 0 or self.train.tokens is not None

    @property
    def needs_answers(self) -> bool:
        """Whether anything but the measuring needs the teacher's answers."""
        mixed = self.on_policy is not None and self.on_policy.off_policy > 0
        return self.learns_offline or mixed or self.student.init == "prune"
