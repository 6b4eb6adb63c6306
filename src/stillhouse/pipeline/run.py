"""A recipe in its directory, and what several stages share, loaded once.

Paths of a run and lazy values; nothing here is written.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..console import console
from ..errors import RecipeError
from ..files import read_json
from ..provenance import Manifest, require_allowed
from ..recipe import Objective, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..corpus import Context, Corpus, Prompt
    from ..distill import Document, TeacherSignal
    from ..models import ChatTemplate, Weights
    from ..provenance import Terms, Verdict


class Run:
    """A recipe in its directory, with what several stages share loaded once."""

    def __init__(self, recipe: Recipe, directory: Path) -> None:
        self.recipe = recipe
        self.directory = directory
        self.manifest = Manifest.load(directory)

    @property
    def objective(self) -> Objective:
        return self.recipe.objective

    @property
    def learns_distributions(self) -> bool:
        """Whether the objective needs the teacher's probabilities, not only its text."""
        from ..distill import needs_teacher

        return needs_teacher(self.objective)

    @property
    def offline_student(self) -> Path:
        """Where the student is after the corpus: the result, or what goes on with its own samples."""
        return self.directory / ("student" if self.recipe.on_policy is None else "offline")

    @property
    def trains_control(self) -> bool:
        return self.recipe.evaluate.control and self.learns_distributions and self.recipe.learns_offline

    @cached_property
    def teacher_has_weights(self) -> bool:
        from ..models import parse_reference

        return parse_reference(self.recipe.teacher.model).kind != "api"

    @cached_property
    def terms(self) -> Terms:
        """The teacher's terms."""
        return self._terms[0]

    @cached_property
    def verdict(self) -> Verdict:
        """That the run may go on; TermsError where it may not."""
        teacher, start = self._terms
        return require_allowed(teacher, self.recipe.purpose, self.recipe.accept_terms, student=start)

    @cached_property
    def _terms(self) -> tuple[Terms, Terms | None]:
        from ..models import recipe_terms

        return recipe_terms(self.recipe)

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
        """Prompts to train on, held-out prompts, and those dropped for sharing an n-gram with the latter."""
        from ..corpus import load_prompts, split_held_out

        settings = self.recipe.prompts
        prompts = load_prompts(
            settings.source, column=settings.column, limit=settings.limit, seed=self.recipe.seed
        )
        ngram = self.recipe.filter.contamination_ngram
        return split_held_out(prompts, settings.held_out, ngram=ngram, seed=self.recipe.seed)

    @cached_property
    def teacher(self) -> Weights:
        from ..models import load_weights

        if not self.teacher_has_weights:
            raise RecipeError(
                f"objective.kind {self.objective.kind!r} needs the teacher's probabilities, "
                f"and {self.recipe.teacher.model} is reachable only through an API",
                hint="Set objective.kind to cross_entropy: an API teacher is learned from by its text.",
            )
        with console.progress(f"loading {self.recipe.teacher.model}", None):
            return load_weights(self.recipe.teacher.model)

    @property
    def context_file(self) -> Path:
        """Where collecting writes down what the teacher was shown."""
        return self.directory / "context.json"

    @cached_property
    def context(self) -> Context:
        """What the teacher is shown: as it was when it was asked."""
        from ..corpus import Context, load_context

        if self.context_file.is_file():
            return Context.from_json(read_json(self.context_file))
        return load_context(self.recipe.teacher)

    def corpus(self, name: str) -> Corpus:
        from ..corpus import Corpus

        return Corpus(self.directory / "corpus" / name)

    @property
    def learned(self) -> Corpus:
        """The exchanges that the student learns from: all that were kept, or of those the verified ones."""
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
        from ..distill import make_documents

        return make_documents(
            self.learned.rows(split),
            tokenizer,
            template,
            loss_on=loss_on or self.objective.loss_on,
            max_length=self.recipe.train.max_length,
        )

    def read_by_teacher(
        self,
        split: str,
        documents: list[Document],
        tokenizer: PreTrainedTokenizerFast,
        template: ChatTemplate,
        *,
        loss_on: Literal["assistant", "all"] | None = None,
    ) -> list[Document]:
        """What the teacher reads for ``documents`` of ``split``: these, or longer ones where it sees more."""
        from ..distill import make_teacher_documents

        if not self.context.private:
            return documents
        return make_teacher_documents(
            documents,
            self.learned.rows(split),
            self.context.for_teacher,
            tokenizer,
            template,
            loss_on=loss_on or self.objective.loss_on,
        )

    @property
    def start(self) -> str:
        """Reference of the student before training, as the student stage saved it."""
        return str(self.directory / "start")

    @cached_property
    def signal(self) -> TeacherSignal:
        from ..distill import AlignedSignal, open_targets

        signal = open_targets(
            self.directory / "targets",
            self.teacher_documents,
            self.objective,
            teacher=self.teacher.model,
            dtype=self.recipe.train.dtype,
        )
        if self.teacher_documents is self.training_documents:
            return signal
        return AlignedSignal(signal, self.training_documents, self.teacher_documents)

    @cached_property
    def training_documents(self) -> list[Document]:
        from ..models import load_tokenizer

        return self.documents("train", *load_tokenizer(self.start))

    @cached_property
    def teacher_documents(self) -> list[Document]:
        """What the teacher reads for the :attr:`training_documents`."""
        from ..models import load_tokenizer

        return self.read_by_teacher("train", self.training_documents, *load_tokenizer(self.start))
