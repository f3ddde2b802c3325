"""Mail on its way in and out, as the page shows it: events as they come, gaps, the outbox, dead letters.

Always true: whatever a peer or a plugin wrote is escaped. What cannot be taken back says what it does
before it is done.
Not here: which rows are shown (feed.py), the page around them (page.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from agentd.control.handling import held_lanes
from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.control.pieces import Row, ago, and_more, button, clock, listed, many, pill, place, short
from agentd.control.standing import outbox_count

_SEND_STATES = {"ready": "busy", "sending": "busy", "unknown": "warn", "refused": "bad", "expired": "bad"}
_GAP_OUTCOMES = {"filled": "good", "absent": "warn", "mixed": "warn", "reset": "idle"}


# -- events ---------------------------------------------------------------------------------------------------------


def records(rows: Iterable[Row]) -> Markup:
    """Records as the flow of events shows them."""
    return joined(_record(row) for row in rows)


def _record(row: Row) -> Markup:
    text = row["text"]
    marks = [
        word for word, true in (("late", row["late"]), (row["source"], row["source"] not in ("live", "own"))) if true
    ]
    conversation = short(row["conversation"])
    return markup(
        """<li class="{kind}"><p class="who">{who}
<span class="dim"><code>{conversation}</code> #{seq}</span> {marks}</p>
{at}
<p class="text">{text}</p>
<button type="button" class="quiet" id="explain-{position}" data-explain="{position}" data-of="{identity}"
aria-label="Explain {conversation} #{seq}">Explain</button></li>""",
        position=row["position"],
        identity=row["identity"],
        kind="own" if row["own"] else "in",
        who=markup("<b>{identity}</b> said", identity=row["identity"])
        if row["own"]
        else markup("<b>{sender}</b> to {identity}", sender=short(row["sender"]), identity=row["identity"]),
        conversation=conversation,
        seq=row["seq"],
        marks=joined(markup("{pill} ", pill=pill("idle", mark)) for mark in marks),
        at=clock(row["received_at"]),
        text=short(text) if text else markup('<span class="dim">{kind}</span>', kind=short(row["type"])),
    )


# -- gaps -----------------------------------------------------------------------------------------------------------


def gaps(status: Row, rows: Sequence[Row]) -> Markup:
    """Ranges that were not pushed: those that are open, then those that were closed last."""
    opened = sum(each["gaps_open"] for each in status["identities"] if each.get("gaps_open"))
    shown = sum(row["closed_at"] is None for row in rows)
    more = and_more(opened - shown, "agentd gaps") if len(rows) == shown else NOTHING
    return listed(rows, _gap, "No gap was found.", more)


def _gap(row: Row) -> Markup:
    outcome = row["outcome"]
    if row["closed_at"] is None:
        told = markup("found {at}, {tries}", at=ago(row["found_at"]), tries=many(row["attempts"], "try", "tries"))
    else:
        told = markup("closed {at}", at=ago(row["closed_at"]))
    absent = f"; {many(row['absent'], 'seq', 'seqs')} never came: {short(row['reason'])}" if row["absent"] else None
    return markup(
        """<li>
<div class="line"><span class="who">{place} <b>{seqs}</b></span> {pill}</div>
<p class="dim">{told}{absent}</p>
</li>""",
        place=place(row),
        seqs=f"{row['start']}" if row["stop"] == row["start"] + 1 else f"{row['start']} to {row['stop'] - 1}",
        pill=pill(_GAP_OUTCOMES.get(outcome, "busy"), outcome or "open"),
        told=told,
        absent=absent,
    )


# -- outbox ---------------------------------------------------------------------------------------------------------


def outbox(status: Row, rows: Sequence[Row], limit: int) -> Markup:
    """Sends that wait, and those that somebody has to decide about. limit: how many were asked for."""
    more = sum(map(outbox_count, status["identities"])) - len(rows) if len(rows) >= limit else 0
    empty = "Nothing waits to be sent, and nothing was refused."
    return listed(rows, _send, empty, and_more(more, "agentd outbox ls"))


def _send(row: Row) -> Markup:
    return markup(
        """<li>
<div class="line"><span class="who">{identity} to <b>{target}</b></span> {pill}</div>
<p class="text">{text}</p>
{error}
<div class="line"><span class="dim">{attempts}, queued {queued}</span> <span class="actions">{retry} {drop}</span></div>
</li>""",
        identity=row["identity"],
        target=short(row["target"]),
        pill=pill(_SEND_STATES[row["state"]], row["state"]),
        text=short(row["content"].get("text") or "(no text)"),
        error=markup('<p class="why">{error}</p>', error=short(row["error"])) if row["error"] else NOTHING,
        attempts=many(row["attempts"], "attempt", "attempts"),
        queued=ago(row["queued_at"]),
        retry=_retry(row),
        drop=_drop_send(row),
    )


def _retry(row: Row) -> Markup:
    if not (row["needs_decision"] or row["state"] in ("refused", "expired")):
        return NOTHING
    target = short(row["target"])
    if row["needs_decision"]:
        means = f"Nobody can tell whether it arrived. If it did, {target} has it twice: look there first."
    else:
        means = f"It leaves for {target} at once, under the key that it had."
    return button(
        "Send it",
        "/api/outbox/retry",
        _chosen(row),
        f"the send to {target} leaves",
        about=row["target"],
        ask=("Send this again?", means, "Send it again"),
    )


def _drop_send(row: Row) -> Markup:
    target = short(row["target"])
    means = f"It never leaves for {target}."
    if row["needs_decision"]:
        means = f"It is not sent to {target} again. Nobody can tell whether it arrived."
    return button(
        "Drop",
        "/api/outbox/drop",
        _chosen(row),
        f"the send to {target} was dropped",
        about=row["target"],
        ask=("Drop this send?", f"{means} Its row stays in the journal.", "Drop it"),
    )


def _chosen(row: Row) -> dict[str, str]:
    return {"client_msg_id": row["client_msg_id"], "identity": row["identity"]}


# -- dead letters ---------------------------------------------------------------------------------------------------


def letters(status: Row, rows: Sequence[Row], limit: int) -> Markup:
    """Events that were given up, until somebody has looked at them. limit: how many were asked for."""
    more = sum(each.get("dead", 0) for each in status["identities"]) - len(rows) if len(rows) >= limit else 0
    shown = partial(_letter, held_lanes(status["plugins"]))
    return listed(rows, shown, "No event was given up.", and_more(more, "agentd dead ls"))


def _letter(held: Collection[tuple[str, str, str]], row: Row) -> Markup:
    number = row["number"]
    return markup(
        """<li>
<div class="line"><span class="who"><b>{plugin}</b> for {place}</span>
<span class="dim">no. {number}</span></div>
<p class="why">{error}</p>
<div class="line"><span class="dim">{attempts}, {died}</span> <span class="actions">
<button type="button" data-letter="{number}" id="show-{number}" aria-label="Show dead letter {number}">Show</button>
{again} {drop}</span></div>
</li>""",
        plugin=row["plugin"],
        place=place(row),
        number=number,
        error=short(row["error"]),
        attempts=many(row["attempts"], "attempt", "attempts"),
        died=ago(row["died_at"]),
        again=_replay(row, is_held=(row["plugin"], row["identity"], row["conversation"]) in held),
        drop=button(
            "Drop",
            "/api/dead/drop",
            {"number": number},
            f"dead letter {number} was dropped",
            about=f"dead letter {number}",
            ask=(f"Drop dead letter {number}?", "It leaves this list. The event stays in the journal.", "Drop it"),
        ),
    )


def _replay(row: Row, *, is_held: bool) -> Markup:
    number, plugin, conversation = row["number"], row["plugin"], short(row["conversation"])
    if is_held:
        means = f"{plugin} handles it before anything else in {conversation}, which waits for it, and may send."
    else:
        means = (
            f"It comes to {plugin} by itself, marked late, and {plugin} may send. The conversation goes on meanwhile."
        )
    return button(
        "Replay",
        "/api/dead/replay",
        {"number": number},
        f"the event of dead letter {number} is delivered again",
        about=f"dead letter {number}",
        ask=(f"Replay dead letter {number}?", f"{means} The letter leaves this list.", "Replay it"),
    )
