"""Pieces that every part of the page is made of: lists, buttons, pills, times, what somebody wrote.

Always true: a time is given as such, so that a piece does not change with the clock. What somebody wrote is cut, and
shows what could hide in it. A list is as long as its caller says, and tells what it leaves out.
Not here: what stands where (page.py), how it looks (static/page.css).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.core import moments
from agentd.logs import printable

Row = Mapping[str, Any]

TEXT_MAX_CHARS = 400  # of what is shown; the whole text is in the journal

DURATIONS = ((900, "15 minutes"), (3_600, "1 hour"), (28_800, "8 hours"), (86_400, "1 day"), ("", "until resumed"))
"""How long a conversation may be paused from the page: seconds, and their words."""


def listed(rows: Sequence[Row], shown: Callable[[Row], Markup], empty: str, more: Markup = NOTHING) -> Markup:
    """Rows below each other, or what is said when there are none. more: what is left out."""
    if not rows:
        return markup('<p class="empty">{empty}</p>', empty=empty)
    return markup('<ul class="rows">{rows}</ul>{more}', rows=joined(shown(row) for row in rows), more=more)


def and_more(count: int, see: str) -> Markup:
    """That a list leaves so many out, and where they are to be seen; nothing if it leaves none out."""
    if count <= 0:
        return NOTHING
    return markup('<p class="more">and {count} more; see: <code>{see}</code></p>', count=f"{count:,}", see=see)


def place(row: Row) -> Markup:
    """An identity and its conversation."""
    return markup(
        "{identity} <code>{conversation}</code>", identity=row["identity"], conversation=short(row["conversation"])
    )


def button(
    label: str,
    path: str,
    body: Mapping[str, Any],
    done: str,
    *,
    about: str,
    key: str = "",
    ask: tuple[str, str, str] | None = None,
) -> Markup:
    """A button that posts. done: what is said when it worked. about: what it acts on, for those who do not see it.

    key: which of several that do the same. ask: (question, what it means, the answer that does it), for what cannot be
    undone.
    """
    asked = (
        markup(
            ' data-ask="{question}" data-means="{means}" data-yes="{yes}"', question=ask[0], means=ask[1], yes=ask[2]
        )
        if ask
        else NOTHING
    )
    posted = json.dumps(body, sort_keys=True)
    return markup(
        '<button type="button" id="{id}" data-post="{path}" data-body="{body}" data-done="{done}"'
        ' aria-label="{label} {about}"{asked}>{label}</button>',
        id=f"{key}{path}:{posted}",
        path=path,
        body=posted,
        done=done,
        about=short(about),
        asked=asked,
        label=label,
    )


def pause_button(row: Row, words: str, *, key: str) -> Markup:
    """Asks how long, and then keeps handlers out of the conversation of this row. key: which of its buttons this is."""
    return markup(
        """<button type="button" id="{key}:{identity}:{conversation}" data-pause="{identity}"
data-conversation="{conversation}" aria-label="Pause {about}">{words}</button>""",
        key=key,
        identity=row["identity"],
        conversation=row["conversation"],
        about=short(row["conversation"]),
        words=words,
    )


def resume_button(row: Row, *, key: str) -> Markup:
    """Lets handlers run again in the conversation of this row."""
    conversation = row["conversation"]
    return button(
        "Resume",
        "/api/resume",
        {"identity": row["identity"], "conversation": conversation},
        f"{short(conversation)} goes on",
        about=conversation,
        key=key,
    )


def pill(look: str, word: str) -> Markup:
    """A state in a word, coloured by what it means."""
    return markup('<span class="pill {look}">{word}</span>', look=look, word=word)


def many(count: int, one: str, several: str) -> str:
    """So many of something."""
    return f"{count:,} {one if count == 1 else several}"


def sentence(words: str) -> str:
    """With a capital, and a full stop unless it ends in something like one."""
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '!', '?', '…')) else '.'}"


def short(text: str) -> str:
    """What somebody wrote: not too long, and with characters written out that show nothing or turn others around."""
    cut = text if len(text) <= TEXT_MAX_CHARS else f"{text[: TEXT_MAX_CHARS - 1]}…"
    return "\n".join(map(printable, cut.split("\n")))


def ago(at: str) -> Markup:
    """A time that the script turns into "12 s ago"."""
    return markup('<time datetime="{at}" data-ago title="{at}">{clock}</time>', at=at, clock=_hms(at))


def lasting(at: str) -> Markup:
    """A time that the script turns into "for 12 s"."""
    return markup('<time datetime="{at}" data-lasting title="{at}">since {clock}</time>', at=at, clock=_hms(at))


def until(at: str) -> Markup:
    """A time to come that the script turns into "for another 12 s"."""
    return markup('<time datetime="{at}" data-until title="{at}">until {clock}</time>', at=at, clock=_hms(at))


def clock(at: str) -> Markup:
    """A time of day; the script turns it into the reader's own."""
    return markup('<time datetime="{at}" data-clock title="{at}">{clock}</time>', at=at, clock=_hms(at))


def aged(age_s: float) -> Markup:
    """The time that was so long ago, to the second, so that it stays the same from one look to the next."""
    return ago(iso(time.time() - age_s))


def iso(unix_s: float) -> str:
    """Unix seconds as ISO 8601, to the second."""
    return moments.iso(round(unix_s))


def _hms(at: str) -> str:
    return at[11:19]
