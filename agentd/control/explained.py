"""What the plugins make of an event, as the page shows it in a dialog.

Always true: whatever a peer, a plugin or a configuration wrote is escaped; what was decided is told in words.
Not here: finding it out (operations/explaining.py), its words (fates.py), the page around it (page.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from agentd.control.fates import MATCHES, filter_passed, told_fate, told_filter, told_outcome, told_pause
from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.control.pieces import Row, ago, clock, pause_button, pill, resume_button, sentence, short

_FATES = {
    "handled": ("good", "handled"),
    "passed_over": ("idle", "passed over"),
    "passed": ("idle", "passed"),
    "waiting": ("busy", "waits"),
    "running": ("busy", "runs"),
    "failing": ("warn", "fails"),
    "paused": ("warn", "paused"),
    "aside": ("busy", "aside"),
    "held": ("bad", "held"),
    "dead": ("bad", "dead"),
    "never_offered": ("idle", "never offered"),
}
"""How each of operations.explaining.STATES looks, and its word."""

_MATCH = {True: ("good", "matches"), False: ("idle", "no match"), None: ("bad", "raised")}
_PASSED = {"passed": "good", "failed": "warn", "raised": "bad", "not asked": "idle"}


def explanation(found: Row, pause: Row | None) -> dict[str, Markup]:
    """An event with what became of it, and what to do about its conversation: {html, act}.

    found: as Daemon.explain gives it. pause: what its conversation is under.
    """
    event = found["event"]
    html = markup(
        "{event} {pause} {plugins}",
        event=_event(event),
        pause=NOTHING if pause is None else markup('<p class="why">{told}</p>', told=sentence(told_pause(pause))),
        plugins=_plugins(found["plugins"]),
    )
    key = "explained"
    if pause is None:
        return {"html": html, "act": pause_button(event, "Pause the conversation", key=key)}
    return {"html": html, "act": resume_button(event, key=key)}


def _event(row: Row) -> Markup:
    how = ", ".join([row["source"], *(word for word in ("own", "late") if row[word])])
    told = (
        ("from", short(row["sender"])),
        ("to", row["identity"]),
        ("in", markup("<code>{conversation}</code> #{seq}", conversation=short(row["conversation"]), seq=row["seq"])),
        ("came", markup("{at}, {how}", at=ago(row["received_at"]), how=how)),
        ("id", markup("<code>{id}</code>, position {position}", id=short(row["id"]), position=row["position"])),
        ("text", short(row["text"]) if row["text"] else row["type"]),
    )
    return markup(
        '<dl class="facts">{facts}</dl>',
        facts=joined(markup("<dt>{term}</dt><dd>{words}</dd>", term=term, words=words) for term, words in told),
    )


def _plugins(lanes: Sequence[Row]) -> Markup:
    if not lanes:
        return markup('<p class="empty">No plugin is asked: none serves this identity.</p>')
    return joined(map(_lane, lanes))


def _lane(lane: Row) -> Markup:
    return markup(
        """<section class="lane" aria-label="Plugin {plugin}">
<div class="line"><h3>{plugin}</h3> {pill}</div>
<p>{fate}</p>
{outcomes}
{handlers}
</section>""",
        plugin=lane["plugin"],
        pill=pill(*_FATES[lane["fate"]["state"]]),
        fate=sentence(short(told_fate(lane))),
        outcomes=joined(
            markup('<p class="dim">{at} {told}</p>', at=clock(each["at"]), told=short(told_outcome(each)))
            for each in lane.get("outcomes", ())
        ),
        handlers=markup('<ul class="rows">{rows}</ul>', rows=joined(map(_handler, lane["handlers"])))
        if lane["handlers"]
        else markup('<p class="empty">It has no handlers.</p>'),
    )


def _handler(row: Row) -> Markup:
    look, word = _MATCH[row["matches"]]
    return markup(
        """<li><div class="line"><span><b>{name}</b> <span class="dim">{place}</span></span> {pill}</div>
{filters}</li>""",
        name=row["name"],
        place=row["place"],
        pill=markup('<span title="{told}">{pill}</span>', told=MATCHES[row["matches"]], pill=pill(look, word)),
        filters=markup('<ul class="filters">{rows}</ul>', rows=joined(map(_filter, row["filters"])))
        if row["filters"]
        else NOTHING,
    )


def _filter(row: Row) -> Markup:
    said = filter_passed(row)
    return markup("<li>{pill} <span>{told}</span></li>", pill=pill(_PASSED[said], said), told=short(told_filter(row)))
