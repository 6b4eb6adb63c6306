"""Reads YAML with the line of every value, and writes it.

Scalars follow the core schema of YAML 1.2 (``no`` and ``on`` are words, ``1e-4`` is a number), with ``_``
allowed between digits. Anchors, aliases and ``<<`` merges work. Duplicate keys, tags such as
``!!python/name`` and values that contain themselves are errors. Dates stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

from stillhouse.errors import RecipeError

KeyPath = tuple[str | int, ...]
Origins = dict[KeyPath, str]
"""The location of each value, e.g. ``recipe.yaml:7``."""

MAX_VALUES, MAX_DEPTH = 100_000, 64
"""Aliases of aliases grow exponentially, and pydantic's JSON parser stops at 200 levels."""

_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
Resolvers = dict[str | None, list[tuple[str, re.Pattern[str]]]]


def _core_resolvers() -> Resolvers:
    resolvers: Resolvers = {"": [(_TAG + "null", re.compile(r"\Z"))]}
    for kind, pattern, first_characters in _CORE:
        for character in first_characters:
            resolvers.setdefault(character, []).append((_TAG + kind, re.compile(rf"(?:{pattern})\Z")))
    return resolvers


class _CoreSchemaLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = _core_resolvers()


class _CoreSchemaDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 or 1.1 would not read as text (``no``, ``1e-4``)."""

    yaml_implicit_resolvers: ClassVar[Resolvers] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        key: _core_resolvers().get(key, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(key, [])
        for key in {**_core_resolvers(), **yaml.SafeDumper.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


_CoreSchemaDumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence(_TAG + "seq", value, flow_style=True)
)
# Line breaks that only double quotes preserve: elsewhere they become spaces or other line breaks.
_CoreSchemaDumper.add_representer(
    str,
    lambda dumper, value: dumper.represent_scalar(
        _TAG + "str", value, style='"' if re.search("[\x85\u2028\u2029]", value) else None
    ),
)


def dump_yaml(value: Any) -> str:
    """``value`` as YAML that `read_yaml` reads back; tuples on one line, keys in order."""
    return yaml.dump(value, Dumper=_CoreSchemaDumper, sort_keys=False, allow_unicode=True, width=10**6)


def read_yaml(text: str, name: str) -> tuple[Any, Origins]:
    """Reads one document.

    Args:
        text: the YAML.
        name: the file name in error messages and origins.

    Returns:
        The value (dict, list, str, int, float, bool and None), and the location of each value in it.

    Raises:
        RecipeError: the text is not valid YAML of this kind; the message names the line.
    """
    try:
        node = yaml.compose(text, Loader=_CoreSchemaLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = name if mark is None else f"{name}:{mark.line + 1}"
        raise RecipeError(f"{location}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        raise RecipeError(f"{name}: the file is empty")
    reader = _NodeReader(name)
    return reader.value(node, ()), reader.origins


class _NodeReader:
    """Converts a tree of YAML nodes to plain values and records their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.origins: Origins = {}
        self.open: list[yaml.Node] = []
        self.values = 0

    def location(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.origins.setdefault(path, self.location(node))
        # An anchor may refer to a node that encloses it.
        if any(node is outer for outer in self.open):
            raise RecipeError(f"{self.location(node)}: a value that contains itself")
        self.values += 1
        if self.values > MAX_VALUES or len(self.open) > MAX_DEPTH:
            raise RecipeError(f"{self.location(node)}: too many values, or nested too deeply, for a recipe")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return dict(self.items(node, path))
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            return self.scalar(node)
        finally:
            self.open.pop()

    def items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        seen: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{self.location(key_node)}: a key must be plain text")
            key = key_node.value
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key in seen:
                first = seen[key].start_mark.line + 1
                raise RecipeError(f"{self.location(key_node)}: {key}: duplicate key, first on line {first}")
            seen[key] = key_node
            self.origins[(*path, key)] = self.location(key_node)
            yield key, self.value(value_node, (*path, key))
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                raise RecipeError(f"{self.location(source)}: only mappings can be merged with `<<`")
            for key, value in self.value(source, (*path, "<<")).items():
                if key not in seen:
                    seen[key] = source
                    self.origins[(*path, key)] = self.location(source)
                    yield key, value

    def scalar(self, node: yaml.Node) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if not isinstance(text, str):
            raise RecipeError(
                f"{self.location(node)}: the tag `{node.tag}` is not supported for a list or a mapping"
            )
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in text):
            raise RecipeError(
                f"{self.location(node)}: text with a lone surrogate or a null character is not supported"
            )
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            raise RecipeError(f"{self.location(node)}: `{text}` is not a {kind}") from None
        if kind in ("str", "merge"):
            return text
        raise RecipeError(f"{self.location(node)}: the tag `{node.tag}` is not supported")
