"""HTML from templates, with everything escaped that is not HTML already.

    markup("<b>{name}</b>", name=name)      a value is escaped, unless `markup` made it
    joined(markup(...) for ...)             pieces one after the other

Always true: text can only become `Markup` by being escaped, or by being a template in our own source.
"""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """HTML that may be shown as it is."""

    __slots__ = ()


NOTHING = Markup()


def markup(template: str, **values: object) -> Markup:
    """Fill a template: `{name}` becomes the value of that name, as text."""
    return Markup(template.format(**{name: escaped(value) for name, value in values.items()}))


def joined(pieces: Iterable[Markup]) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(pieces))


def escaped(value: object) -> Markup:
    """A value as text; nothing for None."""
    if isinstance(value, Markup):
        return value
    return NOTHING if value is None else Markup(html.escape(str(value)))
