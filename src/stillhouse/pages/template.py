"""Pages: one offline HTML file each, in the house's one style (``page.css``).

No page has a script or loads anything. What models said is untrusted text, escaped like all other text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(package: str | None, name: str, filters: Mapping[str, Any]) -> Template:
    """A page of a room: everything that is not marked as markup is escaped, a missing name is an error.

    Args:
        package: the room, its ``__package__``; ``page.css`` is found from all of them.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    assert package is not None
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("stillhouse.pages", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
