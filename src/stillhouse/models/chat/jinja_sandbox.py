"""The sandboxed Jinja environment that renders chat templates.

It offers templates what transformers offers them (`raise_exception`, `strftime_now`, `tojson`, loop controls,
`{% generation %}`), with one difference: the date is fixed. A template that writes today's date into the
prompt would give a run other prompts tomorrow. The sandbox keeps templates from Python's internals. It does
not limit the time or memory that one takes; see `isolated_template` for that.
"""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

# The date that Llama 3.1's template falls back to when there is no clock.
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)

# Written around the body of `{% generation %}`. Noncharacters, which never occur in text (Unicode, section
# 23.7).
GENERATION_START, GENERATION_END = "\ufdd2", "\ufdd3"


def without_generation_marks(text: str) -> str:
    """``text`` without the marks of `{% generation %}` blocks."""
    return text.replace(GENERATION_START, "").replace(GENERATION_END, "")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{GENERATION_START}{caller()}{GENERATION_END}"


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML, and models were not trained on that.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return environment


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """The compiled template. Raises jinja2.TemplateSyntaxError where it is malformed."""
    return _environment().from_string(source)


@functools.lru_cache(maxsize=32)
def variables_read(source: str) -> frozenset[str]:
    """Names of the variables that a template reads; none where it is malformed."""
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source)))
    except jinja2.TemplateSyntaxError:
        return frozenset()
