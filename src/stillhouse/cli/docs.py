"""The reference pages, made from the code: ``python -m stillhouse.cli.docs docs``.

docs/cli.md comes from the verbs, docs/recipe.md and docs/trace-plan.md from the fields of a recipe and of a
plan. A test checks that all are current.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import typing
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen

from stillhouse.cli.app import EXIT_STATUS, SUMMARY, VERBS, app
from stillhouse.files import atomic_write
from stillhouse.provenance import terms_page
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import section_of
from stillhouse.trace.plan import TracePlan

MADE = "<!-- Made by `make docs`; edit the code instead. -->"

RECIPE_PREFACE = """\
# The recipe

A recipe is a YAML file. Keys that are left out have the defaults below, and any key can be set on the
command line, e.g. `still run recipe.yaml --train.epochs 2 --student.lora.rank 8`. The smallest recipe:

```yaml
name: first
teacher:
  model: embedded:smollm2
prompts:
  source: package:mmlu
student:
  init: prune
  layers: 15
```

YAML 1.2 rules hold: `no` and `on` are words, `1e-4` is a number, `1_000_000` may be written so. An unknown
key, a key given twice, a wrong type or a value out of range is refused, with its line."""


PLAN_PREFACE = """\
# The plan of a trace

A plan is a YAML file for `still trace --plan`; [trace.md](trace.md) has an example. Keys that are left out
have the defaults below; what the command line names (suspect, teachers, references) may be left out too. The
resolved plan is kept in the bundle and committed before the first query. A key that is unknown or given
twice, a wrong type or a value out of range is refused, with its line."""


def command_page() -> str:
    """docs/cli.md: every verb with its options and examples."""
    _, *chapters = app.generate_docs(usage_name="still").split("\n## still ")
    described = dict(zip(VERBS, chapters, strict=False))  # the last chapter is --install-completion
    parts = [MADE, "# The command `still`", SUMMARY, EXIT_STATUS]
    for name, verb in VERBS.items():
        module = sys.modules[verb.__module__]
        chapter, *below = described[name].replace(f"still {name} {name} ", f"still {name} ").split("\n### ")
        parts += [f"## still {chapter.strip()}", _examples(module.EXAMPLES)]
        for text, (_, examples) in zip(below, getattr(module, "PARTS", {}).values(), strict=True):
            parts += [f"### {text.strip()}", _examples(examples)]
    return "\n\n".join(parts) + "\n"


def _examples(text: str) -> str:
    commands = inspect.cleandoc(text.removeprefix("Examples:\n"))
    return f"**Examples**:\n\n```console\n{commands}\n```"


def plan_page() -> str:
    """docs/trace-plan.md: every key of a trace's plan."""
    return "\n\n".join([MADE, PLAN_PREFACE, *_section(TracePlan, "")]) + "\n"


def recipe_page() -> str:
    """docs/recipe.md: every key of a recipe with type, range, default and meaning."""
    return "\n\n".join([MADE, RECIPE_PREFACE, *_section(Recipe, "")]) + "\n"


def _section(section: type, prefix: str) -> list[str]:
    """Title, table and the sections below, for one dataclass whose keys begin with ``prefix``."""
    meanings = _meanings(section)
    hints = typing.get_type_hints(section, include_extras=True)
    rows, below = [], []
    for field in dataclasses.fields(section):
        key, inner = prefix + field.name, section_of(hints[field.name])
        if inner is not None:
            below += _section(inner, f"{key}.")
        if inner is None or prefix:
            cells = [f"`{key}`", _type_text(hints[field.name]), _default_text(field), meanings[field.name]]
            rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## Top level"
    return [f"{title}\n\n{inspect.getdoc(section)}", table, *below]


def _meanings(section: type) -> dict[str, str]:
    """The docstring that stands under each field."""
    tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == section.__name__)
    return {
        field.target.id: " ".join(str(ast.literal_eval(text.value)).split()).replace("|", "\\|")
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
    }


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`"
    if field.default is dataclasses.MISSING:
        return "**required**"
    if field.default is None:
        return "–"
    if dataclasses.is_dataclass(field.default):
        return "`{}`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return f"`{field.default}`"


def _type_text(hint: Any) -> str:
    """``whole number > 0``, ``one of `a`, `b` ``, ``list of text`` …"""
    if hint is type(None):
        return "none"
    plain = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    if hint in plain:
        return plain[hint]
    if dataclasses.is_dataclass(hint):
        return "section"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type_text(arguments[0]) + "".join(map(_range_text, arguments[1:]))
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        number = "list of" if arguments[-1] is ... else f"{len(arguments)} ×"
        return f"{number} {_type_text(arguments[0])}"
    if origin is dict:
        return "mapping"
    return " or ".join(_type_text(argument) for argument in arguments)


def _range_text(limit: Any) -> str:
    match limit:
        case Gt(gt=value):
            return f" > {value}"
        case Ge(ge=value):
            return f" ≥ {value}"
        case Lt(lt=value):
            return f" < {value}"
        case Le(le=value):
            return f" ≤ {value}"
        case MinLen():
            return ""
    raise AssertionError(f"no words for {limit!r}")


PAGES = {
    "cli.md": command_page,
    "recipe.md": recipe_page,
    "terms-table.md": terms_page,
    "trace-plan.md": plan_page,
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        atomic_write(Path(sys.argv[1]) / file, page())
