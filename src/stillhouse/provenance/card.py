"""The model card of a student (``README.md``), with the metadata that the Hugging Face Hub reads.

States teacher, data, objective, results, terms, how to reproduce the student, and its
limitations. It adds no number that is not in the report, and omits what the report
lacks. Text from outside (names, reasons) is escaped for Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse import __version__
from stillhouse.divergences import OBJECTIVES
from stillhouse.pages.fact_names import TIMES, fact_name
from stillhouse.pages.numbers import column_decimals, format_column, format_duration, format_interval
from stillhouse.provenance.card_head import (
    base_reference,
    base_terms,
    card_head,
    hub_name,
    public_name,
    student_license,
)
from stillhouse.provenance.terms import Terms
from stillhouse.provenance.terms_verdict import TermsVerdict, naming_warning
from stillhouse.recipe import Recipe, Teacher
from stillhouse.recipe.load import dump_recipe
from stillhouse.recipe.teachers import all_teachers, request_options


def model_card(
    *,
    recipe: Recipe,
    report: Mapping[str, Any],
    terms: Sequence[Terms],
    verdict: TermsVerdict,
    manifest_facts: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        report: the fields of ``report.json``; any of them may be missing.
        terms: terms of the teachers, the main teacher's first.
        verdict: the verdict on the recipe's purpose.
        manifest_facts: the facts of each stage in the manifest, by the stage's name.
    """
    import yaml

    # wide, because PyYAML would fold long values at 80 columns
    head = yaml.safe_dump(card_head(recipe, terms), sort_keys=False, allow_unicode=True, width=1000)
    sections = [
        _opening(recipe, terms),
        _section("Teacher", _teacher(recipe, report)),
        _section("Data", _data(recipe, report)),
        _section("Training", _training(recipe, manifest_facts)),
        _section("Results", _results(report)),
        _section("Terms", _terms(recipe, terms, verdict)),
        _section("Reproduction", _reproduction(recipe)),
        _section("Limitations", _limitations(recipe, report)),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _opening(recipe: Recipe, terms: Sequence[Terms]) -> str:
    base = base_reference(recipe)
    start = {
        "scratch": "a randomly initialised model",
        "prune": f"{_model(base)} with parts removed" if base else "",
        "pretrained": _model(base) if base else "",
    }[recipe.student.init]
    lines = [f"# {escape(recipe.name)}"]
    sources = {entry.key: entry for entry in (*terms, base_terms(recipe, terms)) if entry}.values()
    lines += [f"**{credit}**" for credit in dict.fromkeys(entry.credit for entry in sources) if credit]
    models = " and ".join(_model(teacher.model) for teacher in all_teachers(recipe))
    lines.append(f"A student distilled from {models}; it started from {start}.")
    warnings = filter(None, (naming_warning(entry, recipe.name) for entry in sources))
    lines += [f"> **Rename this model before you distribute it.** {escape(warning)}" for warning in warnings]
    return "\n\n".join(lines)


def _teacher(recipe: Recipe, report: Mapping[str, Any]) -> str:
    lineage = report.get("lineage") or {}
    rows = [("model", _model(recipe.teacher.model))]
    rows += [("fingerprint (SHA-256)", f"`{lineage[k]}`") for k in ("teacher_hash",) if lineage.get(k)]
    rows += [("chat template (SHA-256)", f"`{lineage[k]}`") for k in ("template_hash",) if lineage.get(k)]
    rows += [*_options(recipe.teacher), *_context(recipe.teacher)]
    for number, teacher in enumerate(recipe.teachers, start=1):
        rows.append((f"teacher {number + 1}", f"{_model(teacher.model)}, {_role(teacher)}"))
        rows += [*_options(teacher), *_context(teacher)]
    return _list(rows)


def _options(teacher: Teacher) -> list[tuple[str, str]]:
    options = request_options(teacher)
    return [("options of its requests", f"`{json.dumps(options, ensure_ascii=False)}`")] if options else []


def _context(teacher: Teacher) -> list[tuple[str, str]]:
    rows = []
    if teacher.system:
        rows.append(("system prompt", escape(_public_system(teacher.system))))
    if teacher.examples:
        rows.append(("examples before every question", f"`{public_name(teacher.examples)}`"))
    if teacher.context == "private":
        rows.append(("context", "visible to the teacher only; the student was trained to answer without it"))
    return rows


def _role(teacher: Teacher) -> str:
    """The role of one of several teachers."""
    if not teacher.route:
        return f"its distributions averaged with those of the first teacher, with weight {teacher.weight:g}"
    tags = ", ".join(f"{key}: {value}" for key, value in teacher.route.items())
    return f"for the prompts with {escape(tags)}"


def _data(recipe: Recipe, report: Mapping[str, Any]) -> str:
    rows = [("prompts", f"`{public_name(recipe.prompts.source)}`")]
    settings = recipe.collect
    rows.append(
        (
            "answers",
            f"{settings.samples} per prompt, at {_set('temperature', settings.temperature)}, "
            f"{_set('top-p', settings.top_p)}, at most {settings.max_tokens} tokens",
        )
    )
    counts = report.get("corpus") or {}
    rows += [
        (escape(fact_name(key)), _value(value))
        for key, value in counts.items()
        if _is_plain(value) and key not in TIMES
    ]
    return _list(rows)


def _set(name: str, value: float | None) -> str:
    return f"the API's default {name}" if value is None else f"{name} {value:g}"


def _training(recipe: Recipe, manifest_facts: Mapping[str, Any]) -> str:
    objective = recipe.objective
    goal = OBJECTIVES[objective.kind].description
    if objective.joins_tokenizers and objective.align == "spans":
        goal += ", over the spans that both tokenizers end a token with"
    if OBJECTIVES[objective.kind].reads_teacher and objective.cross_entropy:
        goal += f", with {objective.cross_entropy:g} of the weight on cross-entropy"
    facts = manifest_facts.get("train") or {}
    settings = recipe.train
    rows = [
        ("objective", f"{goal}; temperature {objective.temperature:g}, on {objective.loss_on} tokens"),
        ("optimizer", f"AdamW, peak learning rate {settings.learning_rate:g}, {settings.schedule} schedule"),
        ("batch", f"{settings.batch_tokens:,} tokens"),
    ]
    if recipe.student.lora:
        rows.append(("adapters", f"LoRA of rank {recipe.student.lora.rank}, merged into these weights"))
    rows += [(fact_name(key), _value(facts[key])) for key in ("tokens", "steps") if key in facts]
    if "train_seconds" in facts:
        rows.append((fact_name("train_seconds"), format_duration(facts["train_seconds"])))
    return _list(rows)


def _results(report: Mapping[str, Any]) -> str:
    models: Sequence[Mapping[str, Any]] = report.get("models") or []
    if not models:
        return ""
    columns = [
        ("KL to the teacher, nats/token", _estimates(models, "kl", exact="0")),
        ("top-1 agreement, %", _estimates(models, "agreement", 100, exact="100")),
        ("pass@1, %", _estimates(models, "pass_at_1", 100)),
        ("perplexity", _estimates(models, "perplexity")),
        ("parameters", format_column([m.get("parameters") for m in models], unit="count")),
        ("size", format_column([m.get("bytes") for m in models], unit="B")),
        ("tokens/s", format_column([(m.get("tokens_per_s") or {}).get("median") for m in models])),
    ]
    used = [(title, cells) for title, cells in columns if set(cells) != {"–"}]
    table = [
        "| " + " | ".join(["model", *[title for title, _ in used]]) + " |",
        "|" + "---|" * (len(used) + 1),
    ]
    for number, m in enumerate(models):
        name = escape(public_name(str(m.get("label", m.get("key", "")))))
        table.append("| " + " | ".join([name, *[cells[number] for _, cells in used]]) + " |")
    held_out = report.get("held_out") or {}
    note = f"Measured on {held_out['documents']} held-out documents. " if held_out.get("documents") else ""
    confidence = next((m["perplexity"].get("confidence") for m in models if m.get("perplexity")), None)
    if confidence:
        note += f"In brackets: {confidence:.0%} intervals, clustered by document."
    return "\n\n".join(filter(None, [*_verdict(report), "\n".join(table), note.strip()]))


def _verdict(report: Mapping[str, Any]) -> list[str]:
    """Headline, sentence and the change since before training, a paragraph each."""
    verdict = report.get("verdict") or {}
    headline = f"**{escape(verdict['headline'])}.**" if verdict.get("headline") else ""
    sentences = " ".join(verdict[key] for key in ("sentence", "since_before") if verdict.get(key))
    return [headline, escape(sentences)]


def _terms(recipe: Recipe, terms: Sequence[Terms], verdict: TermsVerdict) -> str:
    answer = {True: "allowed", False: "refused", None: "unknown"}[verdict.allowed]
    weights = base_terms(recipe, terms)
    distinct = {entry.key: entry for entry in terms}.values()
    others = weights if weights and weights.key not in [entry.key for entry in distinct] else None
    chosen = student_license(recipe, terms)
    rows = [("declared purpose", f"{recipe.purpose}: {answer}")]
    if verdict.accepted:
        rows.append(
            ("unknown terms accepted, in the words of this model's author", f"“{escape(verdict.accepted)}”")
        )
    for entry in distinct:
        rows += [
            ("teacher's terms", f"{entry.name} (`{entry.key}`): {entry.clause}"),
            ("source", f"{entry.source}; checked: {entry.checked}"),
        ]
    if others:
        rows.append(("terms of the starting weights", f"{others.name} (`{others.key}`): {others.clause}"))
    rows.append(("licence of this model", f"{escape(chosen.name or 'none')} ({chosen.why})"))
    if chosen.forced and recipe.license not in (None, chosen.name):
        rows.append(("not applied", f"the recipe's licence, {escape(recipe.license or '')}"))
    paragraphs = [_list(rows)]
    if duties := dict.fromkeys((*verdict.duties, *(others.duties if others else ()))):
        paragraphs.append("Duties of anyone who distributes the model:")
        paragraphs.append("\n".join(f"- {duty}" for duty in duties))
    return "\n\n".join([*paragraphs, "From Stillhouse's table of terms; this is not legal advice."])


def _reproduction(recipe: Recipe) -> str:
    text = dump_recipe(_public(recipe)).rstrip()
    # longer than any run of backticks in the recipe, which would close the block
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return (
        f"With Stillhouse {__version__} and the recipe below as `recipe.yaml` (local paths are reduced to "
        "their last component):\n\n"
        "```sh\nstill run recipe.yaml\n```\n\n<details><summary>recipe.yaml</summary>\n\n"
        f"{fence}yaml\n{text}\n{fence}\n\n</details>"
    )


def _public(recipe: Recipe) -> Recipe:
    """The recipe without paths and other values that are private to a machine."""
    student, replace = recipe.student, dataclasses.replace
    return replace(
        recipe,
        teacher=_public_teacher(recipe.teacher),
        teachers=tuple(map(_public_teacher, recipe.teachers)),
        student=replace(
            student,
            model=student.model and public_name(student.model),
            tokenizer=student.tokenizer and public_name(student.tokenizer),
        ),
        prompts=replace(recipe.prompts, source=public_name(recipe.prompts.source)),
    )


def _public_teacher(teacher: Teacher) -> Teacher:
    return dataclasses.replace(
        teacher,
        model=public_name(teacher.model),
        system=teacher.system and _public_system(teacher.system),
        examples=teacher.examples and public_name(teacher.examples),
    )


def _public_system(system: str) -> str:
    return f"file:{public_name(system.removeprefix('file:'))}" if system.startswith("file:") else system


def _limitations(recipe: Recipe, report: Mapping[str, Any]) -> str:
    documents = (report.get("held_out") or {}).get("documents")
    measured = f"{documents} documents" if documents else "documents"
    points = [
        f"Measured on {measured} from the same source as the training prompts; other text, other "
        "languages and other tasks were not measured.",
        "Closeness to the teacher does not measure truth: the student learns the teacher's errors and "
        "biases, and was not tested for safety.",
    ]
    if recipe.student.init == "prune":
        points.append(
            "Parts of the original network were removed; abilities that the data does not use may be lost."
        )
    return "\n".join(f"- {point}" for point in points)


def escape(text: str) -> str:
    """``text`` on one line, with characters that Markdown or HTML interprets escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _model(reference: str) -> str:
    name = hub_name(reference)
    return f"[{name}](https://huggingface.co/{name})" if name else f"`{public_name(reference)}`"


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, Mapping) and bool(value))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(fact_name(key))} {_value(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else escape(str(value))


def _estimates(
    models: Sequence[Mapping[str, Any]], measure: str, scale: float = 1.0, exact: str | None = None
) -> list[str]:
    """A measure's column, with one precision: ``0.432 [0.401 to 0.463]``.

    Args:
        exact: the value of the teacher itself, which holds by definition.
    """
    is_exact = [exact is not None and model.get("key") == "teacher" for model in models]
    estimates = [model.get(measure) for model in models]
    decimals = column_decimals([e for e, skip in zip(estimates, is_exact, strict=True) if not skip], scale)
    cells = []
    for estimate, skip in zip(estimates, is_exact, strict=True):
        if skip and estimate:
            cells.append(str(exact))
            continue
        if not estimate or estimate.get("value") is None:
            cells.append("–")
            continue
        value, ends = format_interval(estimate, scale=scale, decimals=decimals)
        cells.append(value if estimate.get("low") is None else f"{value} [{ends}]")
    return cells
