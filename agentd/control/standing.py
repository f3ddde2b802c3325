"""How the daemon and its identities stand, as the page shows it: health, the counts at a glance, identities.

Always true: whatever a configuration or a platform wrote is escaped. However many identities there are, those that are
shown are bounded, and those in trouble come before the others where not all are.
Not here: what healthy means (core/health.py), the page around it (page.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.control.pieces import Row, aged, and_more, clock, iso, lasting, many, pill, sentence, short
from agentd.core.health import Reason

OUTBOX_STATES = ("ready", "sending", "unknown", "refused", "expired")
"""Of sends that the outbox still has something to do with, or somebody has."""

_IDENTITIES_SHOWN = 50
_REASONS_SHOWN = 8
_HISTORY = 12

_STATES = {
    "live": ("good", "live"),
    "catching_up": ("busy", "catching up"),
    "connecting": ("busy", "connecting"),
    "throttled": ("warn", "throttled"),
    "deaf": ("bad", "deaf"),
    "parked": ("bad", "parked"),
    "off": ("bad", "off"),
}
"""How a state looks, and its word."""


def health(status: Row, reasons: Sequence[Reason], now: float) -> Markup:
    """Whether mail flows, and if not, why. data-told: the same in words to be heard, without what changes by itself."""
    if not reasons:
        states = [each["state"] for each in status["identities"]]
        return markup(
            """<div class="health good" data-told="Mail is flowing."><h1>Mail is flowing</h1>
<p>{summary}</p></div>""",
            summary=_summary(states),
        )
    shown, more = reasons[:_REASONS_SHOWN], len(reasons) - _REASONS_SHOWN
    told = " ".join(
        f"{each.identity}: {_timeless(each)}." if each.identity else sentence(_timeless(each)) for each in shown
    )
    return markup(
        """<div class="health bad" data-told="Mail is not flowing. {told}"><h1>Mail is not flowing</h1>
<ul>{reasons}</ul>{more}</div>""",
        told=told,
        reasons=joined(_reason(each, now) for each in shown),
        more=and_more(more, "agentd status"),
    )


def _reason(reason: Reason, now: float) -> Markup:
    words = _timeless(reason)
    return markup(
        "<li>{words} <small>{since}</small></li>",
        words=markup("<b>{name}</b>: {words}", name=reason.identity, words=words)
        if reason.identity
        else f"{words[:1].upper()}{words[1:]}",
        since=lasting(iso(time.time() - (now - reason.since))),
    )


def _timeless(reason: Reason) -> str:
    """Its words, without how long it lasts: the time beside it tells, and it would change at every look."""
    timeless = {
        "loop_blocked": "the event loop stood still; the log names the code that blocked it",
        "silent": "no ping is answered",
        "commit_hangs": "a commit waits for the disk",
        "not_audited": "marks cannot be compared with the server's; the log tells why",
    }
    return short(timeless.get(reason.code, reason.words))


def _summary(states: Sequence[str]) -> str:
    live = states.count("live")
    if not states:
        return "No identity is configured."
    if live == len(states):
        return {1: "Its identity is live.", 2: "Both identities are live."}.get(
            live, f"All {live:,} identities are live."
        )
    return f"{live:,} of {many(len(states), 'identity', 'identities')} live."


def glance(status: Row) -> Markup:
    """The counts that matter most, each leading to where it is told in full."""
    identities = status["identities"]
    live = sum(each["state"] == "live" for each in identities)
    open_sends = sum(outbox_count(each) for each in identities)
    stopped = sum(each.get(f"outbox_{state}", 0) for each in identities for state in ("unknown", "refused", "expired"))
    dead = _total(identities, "dead")
    gaps = _total(identities, "gaps_open")
    tiles = (
        ("identities", f"{live:,}/{len(identities):,}", "identities live", live < len(identities)),
        ("plugins", f"{_total(identities, 'pending'):,}", "waiting", False),
        ("pauses", f"{len(status['pauses']):,}", "paused", False),
        ("outbox", f"{open_sends:,}", "in the outbox", bool(stopped)),
        ("dead", f"{dead:,}", "dead letters", bool(dead)),
        ("gaps", f"{gaps:,}", "open gaps", bool(gaps)),
    )
    return joined(
        markup(
            '<li><a href="#title-{name}"{look}><b>{count}</b> <span>{words}</span></a></li>',
            name=name,
            look=Markup(' class="wanted"') if wanted else Markup(' class="none"') if count == "0" else NOTHING,
            count=count,
            words=words,
        )
        for name, count, words, wanted in tiles
    )


def outbox_count(identity: Row) -> int:
    """How many sends of an identity the outbox shows."""
    return sum(identity.get(f"outbox_{state}", 0) for state in OUTBOX_STATES)


def _total(identities: Sequence[Row], field: str) -> int:
    return sum(each.get(field) or 0 for each in identities)


def shown_identities(identities: Sequence[Row]) -> list[Row]:
    """Those that have a place in the list, in the order of the configuration."""
    if len(identities) <= _IDENTITIES_SHOWN:
        return list(identities)
    first = sorted(identities, key=lambda each: each["state"] == "live")[:_IDENTITIES_SHOWN]
    chosen = {each["name"] for each in first}
    return [each for each in identities if each["name"] in chosen]


def identities_list(identities: Sequence[Row], made: Mapping[str, Markup]) -> Markup:
    """An empty place for each that is shown, filled with what was made of it: each is a part of its own."""
    if not identities:
        return markup('<p class="empty">No identity is configured.</p>')
    shown = shown_identities(identities)
    return markup(
        '<ul class="rows">{rows}</ul>{more}',
        rows=joined(
            markup('<li id="part-{part}">{row}</li>', part=part_of(each), row=made.get(part_of(each))) for each in shown
        ),
        more=and_more(len(identities) - len(shown), "agentd status"),
    )


def part_of(identity: Row) -> str:
    """The part that shows this identity."""
    return f"identity-{identity['name']}"


def is_listed(part: str) -> bool:
    """Whether this part stands in a place of the list."""
    return part.startswith("identity-")


def identity(row: Row) -> Markup:
    """One identity: its state and why, when it was heard of last, what it has done, what it was before."""
    return markup(
        """<div class="line"><span class="who"><b>{name}</b> <span class="dim">{handle}</span></span> {pill}</div>
{reason}
<p class="dim times">{times}</p>
<dl class="counts">{counts}</dl>
<details id="history-{name}"><summary>History of {name}</summary><ol class="history">{history}</ol></details>""",
        name=row["name"],
        handle=row["handle"],
        pill=pill(*_STATES[row["state"]]),
        reason=_why(row),
        times=_heard(row),
        counts=_counts(row),
        history=joined(map(_change, row["history"][: -_HISTORY - 1 : -1])),
    )


def _why(row: Row) -> Markup:
    if not row["state_reason"]:
        return NOTHING
    look = "dim" if row["state"] == "live" else "why"
    return markup('<p class="{look}">{why}</p>', look=look, why=short(row["state_reason"]))


def _heard(row: Row) -> Markup:
    heard = (("last pong", "last_pong_age_s"), ("last frame", "last_inbound_age_s"), ("last audit", "last_audit_age_s"))
    return joined(
        markup("<span>{what} {at}</span> ", what=what, at=aged(row[field]))
        for what, field in heard
        if row.get(field) is not None
    )


def _counts(row: Row) -> Markup:
    counts = (
        ("on disk", row.get("journaled")),
        ("handled", row.get("handled")),
        ("waiting", row.get("pending")),
        ("to send", row.get("outbox_ready")),
        ("open gaps", row.get("gaps_open")),
        ("dead", row.get("dead")),
        ("absent", row.get("absent")),
        ("reconnects", row.get("reconnects")),
    )
    return joined(
        markup(
            "<div{look}><dt>{what}</dt><dd>{count}</dd></div>",
            look=_look_of(what, count),
            what=what,
            count=f"{count:,}",
        )
        for what, count in counts
        if count is not None
    )


def _look_of(what: str, count: int) -> Markup:
    if not count:
        return Markup(' class="none"')
    return Markup(' class="wanted"') if what in ("open gaps", "dead") else NOTHING


def _change(change: Row) -> Markup:
    return markup(
        "<li>{at} {pill} {reason}</li>",
        at=clock(change["at"]),
        pill=pill(*_STATES[change["state"]]),
        reason=short(change["reason"]),
    )
