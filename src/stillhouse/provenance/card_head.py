"""The head of a model card: YAML between two lines of ``---``, as the Hugging Face Hub reads it.

Field names and values are the Hub's (https://huggingface.co/docs/hub/model-cards); one
field is ours: ``teacher_model``. The head contains no path of the machine that made the
student: a local path is reduced to its last component, and a URL loses its user and query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from stillhouse.provenance.terms import Terms
from stillhouse.provenance.terms_lookup import find_terms, model_name
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers

if TYPE_CHECKING:
    import yaml

# names of the embedded models and packaged prompt sets on the Hub
_HUB_MODELS = {"embedded:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_HUB_DATASETS = {"package:mmlu": "cais/mmlu"}

# values of `license` that the Hub knows; others are written as `other` with a `license_name`
_HUB_LICENSES = frozenset(
    "apache-2.0 mit bsd-3-clause cc-by-4.0 cc-by-nc-4.0 gemma llama2 llama3 llama3.1 llama3.2 llama3.3 "
    "llama4 openrail bigscience-openrail-m bigcode-openrail-m".split()
)
_READ_FIELDS = ("license", "license_name", "license_link", "base_model", "teacher_model")


@dataclass(frozen=True)
class License:
    """A student's licence and the reason for it."""

    name: str | None
    """None if no licence was chosen."""
    why: str
    forced: bool = False


def base_reference(recipe: Recipe) -> str | None:
    """The model whose weights the student starts from; None for a student trained from scratch."""
    if recipe.student.init == "scratch":
        return None
    return recipe.student.model or recipe.teacher.model


def base_terms(recipe: Recipe, terms: Sequence[Terms]) -> Terms | None:
    """Terms of the starting weights: the main teacher's if it is the base, else looked up by name alone."""
    base = base_reference(recipe)
    if base is None:
        return None
    return terms[0] if base == recipe.teacher.model else find_terms(base)


def student_license(recipe: Recipe, terms: Sequence[Terms]) -> License:
    """The student's licence: forced by teachers and starting weights, else the recipe's, else the weights'.

    Args:
        terms: terms of the teachers, the main teacher's first.
    """
    base = base_terms(recipe, terms)
    forced: dict[str, str] = {}
    for entry in terms:
        if entry.student_license:
            forced[entry.student_license] = f"{entry.name} also covers models trained on its outputs"
    if base and base.keeps_license and base.license:
        forced.setdefault(base.license, f"{base.name} covers the weights that the student starts from")
    if forced:
        return License("-and-".join(forced), "; ".join(forced.values()), forced=True)
    if recipe.license:
        return License(recipe.license, "chosen in the recipe")
    if base and base.license:
        return License(base.license, "licence of the weights that the student starts from")
    return License(None, "not chosen; set `license` in the recipe")


def card_head(recipe: Recipe, terms: Sequence[Terms]) -> dict[str, Any]:
    """The head's fields in their order in the file."""
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    chosen = student_license(recipe, terms).name
    if chosen in _HUB_LICENSES:
        head["license"] = chosen
    elif chosen:
        head |= {"license": "other", "license_name": chosen}
    base = base_reference(recipe)
    if base and (name := hub_name(base)):
        # the Hub has no relation for pruned or distilled models
        head |= {"base_model": name, "base_model_relation": "finetune"}
    models = [hub_name(teacher.model) or public_name(teacher.model) for teacher in all_teachers(recipe)]
    head["teacher_model"] = models if recipe.teachers else models[0]
    if dataset := _HUB_DATASETS.get(recipe.prompts.source):
        head["datasets"] = [dataset]
    head["tags"] = ["knowledge-distillation", "stillhouse", recipe.objective.kind.replace("_", "-")]
    return head


def hub_name(reference: str) -> str | None:
    """``org/name`` of a model on the Hub, or None for any other model."""
    if reference in _HUB_MODELS:
        return _HUB_MODELS[reference]
    return model_name(reference) if reference.startswith("hub:") else None


def public_name(reference: str) -> str:
    """A reference without private data: no path, and no user, password or query in a URL."""
    if reference.startswith("api:"):
        url = urlsplit(reference.removeprefix("api:").strip())
        host = url.hostname or ""
        host = f"[{host}]" if ":" in host else host
        address = f"{host}:{url.port}" if url.port else host
        return "api:" + urlunsplit((url.scheme, address, url.path, "", url.fragment))
    if reference.startswith(("hub:", "embedded:", "package:")):
        return reference
    return reference.replace("\\", "/").rstrip("/").rpartition("/")[2]


def read_card_head(text: str) -> dict[str, str]:
    """The fields of a model card that identify the model, as metadata for :func:`.find.find_terms`.

    Several base models are joined with spaces. Empty if there is no head or it is invalid YAML.
    """
    import yaml

    start, _, rest = text.lstrip("\ufeff").partition("\n")
    if start.rstrip() != "---":
        return {}
    head, end, _ = rest.partition("\n---")
    try:
        node = yaml.compose(head, Loader=yaml.SafeLoader) if end else None
    except (yaml.YAMLError, RecursionError):
        return {}
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    texts = {key.value: _node_text(value) for key, value in pairs if key.value in _READ_FIELDS}
    return {key: text for key, text in texts.items() if text}


def _node_text(node: yaml.Node) -> str:
    """The text of a scalar or of a list of scalars; other nodes count as empty."""
    import yaml

    # reads nodes, not objects: constructing objects from nested aliases can take forever
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return " ".join(n.value for n in nodes if isinstance(n, yaml.ScalarNode) and not n.tag.endswith(":null"))
