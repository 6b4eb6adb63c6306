"""The context that a run's stages share: recipe, paths, manifest, and models loaded once.

Values are computed when first used. Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stillhouse.console import console
from stillhouse.errors import RecipeError
from stillhouse.files import read_json
from stillhouse.provenance import Manifest, require_all_allowed
from stillhouse.recipe import Objective, Recipe
from stillhouse.recipe.teachers import all_teachers, teacher_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.corpus import Context, Corpus, Prompt, PromptSet
    from stillhouse.distill import Document
    from stillhouse.models import ChatTemplate, Weights
    from stillhouse.provenance import Terms, TermsVerdict

Value = TypeVar("Value")


class RunContext:
    """A recipe in its directory, with the values that several stages need."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe = recipe
        self.directory = directory
        self.manifest = Manifest.load(directory)
        self._weights: dict[int, Weights] = {}
        self._shared: dict[Callable[[RunContext], Any], Any] = {}

    @property
    def objective(self) -> Objective:
        return self.recipe.objective

    @property
    def learns_distributions(self) -> bool:
        """Whether the objective needs the teacher's probabilities, not only its text."""
        return self.objective.needs_teacher

    @property
    def offline_student(self) -> Path:
        """Directory of the student trained on the corpus: the result, or the start of the on-policy stage."""
        return self.directory / ("student" if self.recipe.on_policy is None else "offline")

    @property
    def trains_control(self) -> bool:
        return self.recipe.evaluate.control and self.learns_distributions and self.recipe.learns_offline

    @cached_property
    def teacher_has_weights(self) -> bool:
        """Whether the main teacher has local weights, rather than an API."""
        from stillhouse.models import parse_reference

        return parse_reference(self.recipe.teacher.model).kind != "api"

    @cached_property
    def teachers_have_weights(self) -> bool:
        """Whether all teachers have local weights."""
        from stillhouse.models import parse_reference

        return all(parse_reference(teacher.model).kind != "api" for teacher in all_teachers(self.recipe))

    @property
    def teachers_terms(self) -> tuple[Terms, ...]:
        """Each teacher's terms, by its number."""
        return self._terms[0]

    @cached_property
    def verdict(self) -> TermsVerdict:
        """The verdict on all teachers' terms; raises TermsError if they forbid the declared purpose."""
        teachers, start = self._terms
        recipe = self.recipe
        return require_all_allowed(teachers, recipe.purpose, recipe.accept_terms, student=start)

    @cached_property
    def _terms(self) -> tuple[tuple[Terms, ...], Terms | None]:
        from stillhouse.models import recipe_terms

        return recipe_terms(self.recipe)

    @cached_property
    def prompt_set(self) -> PromptSet:
        """What `prompts.source` holds; printed once."""
        from stillhouse.corpus import read_recipe_prompts

        prompt_set = read_recipe_prompts(self.recipe)
        prompt_set.report()
        return prompt_set

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
        """Training prompts, held-out prompts, and prompts dropped for an n-gram in common with the latter."""
        from stillhouse.corpus import split_held_out

        ngram, count = self.recipe.filter.contamination_ngram, self.recipe.prompts.held_out
        return split_held_out(self.prompt_set.prompts, count, ngram=ngram, seed=self.recipe.seed)

    @property
    def teacher(self) -> Weights:
        """The main teacher."""
        return self.weights_of(0)

    def weights_of(self, number: int) -> Weights:
        """A teacher by its number, loaded once."""
        from stillhouse.models import load_weights, parse_reference

        model = all_teachers(self.recipe)[number].model
        if number not in self._weights:
            if parse_reference(model).kind == "api":
                raise RecipeError(
                    f"objective.kind {self.objective.kind!r} needs the teacher's probabilities, "
                    f"and {model} is reachable only through an API",
                    hint="Set objective.kind to cross_entropy, which needs only the teacher's text.",
                )
            with console.progress(f"loading {model}", None):
                self._weights[number] = load_weights(model)
        return self._weights[number]

    @property
    def context_file(self) -> Path:
        """File with the contexts that the teachers had when the answers were collected."""
        return self.directory / "context.json"

    @cached_property
    def contexts(self) -> list[Context]:
        """Each teacher's context: as it was when answers were collected, else as the recipe has it now."""
        from stillhouse.corpus import Context, load_context

        if self.context_file.is_file():
            return [Context.from_json(context) for context in read_json(self.context_file)]
        return [load_context(teacher) for teacher in all_teachers(self.recipe)]

    def context_of(self, prompt: Prompt) -> Context:
        """The context of the teacher responsible for ``prompt``."""
        return self.contexts[teacher_number(self.recipe, prompt.tags)]

    def corpus(self, name: str) -> Corpus:
        from stillhouse.corpus import Corpus

        return Corpus(self.directory / "corpus" / name)

    @property
    def learned(self) -> Corpus:
        """The exchanges that the student is trained on: all that passed the filter, or those selected."""
        return self.corpus("kept" if self.recipe.select is None else "selected")

    def documents(
        self,
        split: str,
        tokenizer: PreTrainedTokenizerFast,
        template: ChatTemplate,
        *,
        loss_on: Literal["assistant", "all"] | None = None,
    ) -> list[Document]:
        """The exchanges of ``split`` as token ids."""
        from stillhouse.distill import make_documents

        return make_documents(
            self.learned.rows(split),
            tokenizer,
            template,
            loss_on=loss_on or self.objective.loss_on,
            max_length=self.recipe.train.max_length,
        )

    def texts(self, split: str) -> Iterator[str]:
        """The text of each message in the exchanges of ``split``, thoughts first."""
        for row in self.learned.rows(split):
            for message in row["messages"]:
                yield from filter(None, (message.get("reasoning_content"), message["content"]))

    @property
    def start(self) -> str:
        """Reference of the untrained student, as the student stage saved it."""
        return str(self.directory / "start")

    @cached_property
    def training_documents(self) -> list[Document]:
        """The exchanges of the training split as token ids, for the student as the student stage saved it."""
        from stillhouse.models import load_tokenizer

        return self.documents("train", *load_tokenizer(self.start))

    def shared(self, make: Callable[[RunContext], Value]) -> Value:
        """Returns ``make(self)``, computed at the first call and kept for later stages."""
        if make not in self._shared:
            self._shared[make] = make(self)
        return self._shared[make]
