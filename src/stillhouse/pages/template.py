"""Jinja templates for self-contained HTML pages that share one style sheet (``page.css``).

No page has a script or loads anything. Text from models is untrusted and is escaped like all other text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(package: str | None, name: str, filters: Mapping[str, Any]) -> Template:
    """Loads a template; it escapes all text that is not marked as markup, and raises for an undefined name.

    Args:
        package: the package that holds the template (its ``__package__``); every template can include
            ``page.css``.
        name: the template's file name.
        filters: additional Jinja filters.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    assert package is not None
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("stillhouse.pages", ".")]),
        autoescape=True,  # off by default
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
