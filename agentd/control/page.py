"""What the page shows: status, gaps, outbox and dead letters as HTML.

The page is whole as the server sends it; a script then replaces each part when it has changed, so a part is a function
of its data alone and says nothing that changes with the clock: times are given as such, and the script turns them into
"12 s ago".

Always true: whatever a peer, a plugin or a configuration wrote is escaped. A state is told in words, never by colour
alone.
Not here: when a part is made (feed.py), who may see it (http.py), how it looks (static/page.css).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from agentd.control.explained import pause_button, resume_button
from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.control.pieces import aged, ago, button, clock, iso, lasting, many, pill, short, until
from agentd.control.readings import why_not_ready
from agentd.core.health import Limits, Reason

Row = Mapping[str, Any]

LIST = "identities"
"""The part that lists the identities: an empty place for each, since each is a part of its own."""

ECHO = "@echo"
"""Who answers on the embedded hub."""

_HISTORY = 12
_PAUSES_SHOWN = 20  # a policy of holding stale mail may pause thousands at once

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

_DURATIONS = ((900, "15 minutes"), (3_600, "1 hour"), (28_800, "8 hours"), (86_400, "1 day"), ("", "until resumed"))
"""How long a conversation may be paused from the page: seconds, and their words."""

_SEND_STATES = {"ready": "busy", "sending": "busy", "unknown": "warn", "refused": "bad", "expired": "bad"}


def doorway() -> str:
    """What a browser sees that was not let in yet. The script lets it in if its URL brings an invitation."""
    return _frame(
        "agentd",
        markup(
            """<main id="main" class="doorway" data-doorway>
<img src="/static/icon.svg" alt="" width="44" height="44">
<h1>agentd</h1>
<p id="doorway" role="status">This page opens with a link that works once. To get one, run</p>
<pre><code>agentd dashboard</code></pre>
<p>on the machine where the daemon runs, as its user or as root.</p>
</main>"""
        ),
    )


def document(status: Row, made: Mapping[str, str]) -> str:
    """The whole page. made: what `parts` gave."""
    parts = {name: Markup(html) for name, html in made.items()}
    body = markup(
        """<a class="skip" href="#main">Skip to the content</a>
<header class="top">
  <p class="brand"><img src="/static/icon.svg" alt="" width="28" height="28"> agentd</p>
  <p class="about"><span>version {version}</span> <span>process {pid}</span> <span>started {since}</span></p>
  <button type="button" class="quiet" data-post="/session/end" data-done="you are out"
data-then="leave">Sign out</button>
</header>
<p id="lost" class="lost" role="alert" hidden>The daemon does not answer. What you see is what it said last; it is asked
again every few seconds.</p>
<main id="main" tabindex="-1">
  <section id="part-health" aria-label="Health" aria-live="polite">{health}</section>
  <div class="columns">
    <div class="column">
      {identities}
      {events}
    </div>
    <div class="column">
      {talk}
      {plugins}
      {pauses}
      {outbox}
      {dead}
      {gaps}
    </div>
  </div>
</main>
<div id="said" class="said" role="status" aria-live="polite"></div>
<dialog id="confirm" aria-labelledby="confirm-title">
  <form method="dialog">
    <h2 id="confirm-title"></h2>
    <p id="confirm-words"></p>
    <p class="actions"><button value="no" autofocus>Cancel</button>
    <button value="yes" class="danger" id="confirm-yes"></button></p>
  </form>
</dialog>
<dialog id="pause" aria-labelledby="pause-title">
  <form method="dialog">
    <h2 id="pause-title">Pause a conversation?</h2>
    <p>No handler runs in <code id="pause-conversation"></code> of <b id="pause-identity"></b>. Its mail is kept, and
handled in order once it goes on.</p>
    <p class="field"><label for="pause-for">For how long</label>
    <select id="pause-for">{durations}</select></p>
    <p class="actions"><button value="no" autofocus>Cancel</button>
    <button value="yes" class="danger">Pause it</button></p>
  </form>
</dialog>
<dialog id="explained" aria-labelledby="explained-title">
  <h2 id="explained-title" tabindex="-1" autofocus>What became of an event</h2>
  <div id="explanation"></div>
  <form method="dialog"><p class="actions"><span id="explained-act"></span> <button>Close</button></p></form>
</dialog>
<dialog id="letter" aria-labelledby="letter-title">
  <h2 id="letter-title">Dead letter</h2>
  <dl id="letter-event"></dl>
  <pre id="letter-trace" tabindex="0" aria-label="Traceback"></pre>
  <form method="dialog"><p class="actions"><button>Close</button></p></form>
</dialog>
<noscript><p class="lost">Without scripts this page shows one moment; load it again for the next.</p></noscript>""",
        version=status["version"],
        pid=status["pid"],
        since=ago(iso(time.time() - status["uptime_s"])),
        durations=joined(
            markup('<option value="{for_s}">{words}</option>', for_s=for_s, words=words) for for_s, words in _DURATIONS
        ),
        health=parts["health"],
        identities=_card(LIST, "Identities", _identities(status["identities"], parts)),
        events=_events_card(),
        talk=_talk_card() if status["hub_url"] is not None else NOTHING,
        plugins=_card("plugins", "Plugins", parts["plugins"]),
        pauses=_card("pauses", "Paused conversations", parts["pauses"]),
        outbox=_card("outbox", "Outbox", parts["outbox"]),
        dead=_card("dead", "Dead letters", parts["dead"]),
        gaps=_card("gaps", "Gaps", parts["gaps"]),
    )
    return _frame("agentd", body)


def parts(
    status: Row, limits: Limits, gaps: Sequence[Row], sends: Sequence[Row], letters: Sequence[Row]
) -> dict[str, str]:
    """Every part by its name."""
    now = time.monotonic()
    return {
        "health": _health(status, why_not_ready(status, limits, now), now),
        LIST: _identities(status["identities"], {}),
        **{_part_of(each): _identity(each) for each in status["identities"]},
        "plugins": _plugins(status["plugins"], {(each["identity"], each["conversation"]) for each in status["pauses"]}),
        "pauses": _pauses(status["pauses"]),
        "outbox": _listed(sends, _send, "Nothing waits to be sent, and nothing was refused."),
        "dead": _listed(letters, partial(_letter, _held_lanes(status["plugins"])), "No event was given up."),
        "gaps": _listed(gaps, _gap, "No gap was found."),
    }


def records(rows: Iterable[Row]) -> str:
    """Records as the flow of events shows them."""
    return joined(_record(row) for row in rows)


# -- frames ---------------------------------------------------------------------------------------------------------


def _frame(title: str, body: Markup) -> str:
    return markup(
        """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{title}</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/page.css">
<script src="/static/page.js" defer></script>
</head>
<body>
{body}
</body>
</html>
""",
        title=title,
        body=body,
    )


def _card(name: str, title: str, body: Markup) -> Markup:
    return markup(
        """<section class="card" aria-labelledby="title-{name}">
<h2 id="title-{name}">{title}</h2>
<div id="part-{name}">{body}</div>
</section>""",
        name=name,
        title=title,
        body=body,
    )


def _events_card() -> Markup:
    return markup("""<section class="card" aria-labelledby="title-events">
<div class="head"><h2 id="title-events">Events</h2>
<button type="button" class="quiet" id="hold" aria-pressed="false">Hold the list</button></div>
<p class="empty" id="no-events">Events appear here when they are on disk.</p>
<ol id="events" class="flow" tabindex="-1" aria-labelledby="title-events" reversed></ol>
</section>""")


def _talk_card() -> Markup:
    return markup(
        """<section class="card" aria-labelledby="title-talk">
<h2 id="title-talk">Talk to {echo}</h2>
<ol id="talk" class="talk" role="log" aria-label="What was said"></ol>
<form id="say" class="say">
<label for="say-text" class="hidden">Your message</label>
<input id="say-text" name="text" type="text" maxlength="2000" autocomplete="off" placeholder="Say something" required>
<button>Send</button>
</form>
</section>""",
        echo=ECHO,
    )


def _listed(rows: Sequence[Row], shown: Callable[[Row], Markup], empty: str) -> Markup:
    if not rows:
        return markup('<p class="empty">{empty}</p>', empty=empty)
    return markup('<ul class="rows">{rows}</ul>', rows=joined(shown(row) for row in rows))


# -- parts ----------------------------------------------------------------------------------------------------------


def _health(status: Row, reasons: Sequence[Reason], now: float) -> Markup:
    if not reasons:
        return markup(
            '<div class="health good"><h1>Mail is flowing</h1><p>{summary}</p></div>',
            summary=_summary([each["state"] for each in status["identities"]]),
        )
    return markup(
        '<div class="health bad"><h1>Mail is not flowing</h1><ul>{reasons}</ul></div>',
        reasons=joined(
            markup(
                "<li>{words} <small>{since}</small></li>",
                words=markup("<b>{name}</b>: {words}", name=each.identity, words=_without_numbers(each))
                if each.identity
                else _capitalised(_without_numbers(each)),
                since=lasting(iso(time.time() - (now - each.since))),
            )
            for each in reasons
        ),
    )


def _summary(states: Sequence[str]) -> str:
    live = states.count("live")
    if not states:
        return "No identity is configured."
    if live == len(states):
        return {1: "Its identity is live.", 2: "Both identities are live."}.get(
            live, f"All {live:,} identities are live."
        )
    return f"{live:,} of {many(len(states), 'identity', 'identities')} live."


def _capitalised(words: str) -> str:
    return words[:1].upper() + words[1:]


def _without_numbers(reason: Reason) -> str:
    """Its words, without how long it lasts: the time beside it tells, and it would change at every look."""
    timeless = {
        "loop_blocked": "the event loop stood still; the log names the code that blocked it",
        "silent": "no ping is answered",
        "commit_hangs": "a commit waits for the disk",
        "not_audited": "marks cannot be compared with the server's; the log tells why",
    }
    return timeless.get(reason.code, reason.words)


def _identities(identities: Sequence[Row], made: Mapping[str, Markup]) -> Markup:
    if not identities:
        return markup('<p class="empty">No identity is configured.</p>')
    return markup(
        '<ul class="rows">{rows}</ul>',
        rows=joined(
            markup('<li id="part-{part}">{row}</li>', part=_part_of(each), row=made.get(_part_of(each)))
            for each in identities
        ),
    )


def is_listed(part: str) -> bool:
    """Whether this part stands in a place of the list."""
    return part.startswith("identity-")


def _part_of(identity: Row) -> str:
    return f"identity-{identity['name']}"


def _identity(row: Row) -> Markup:
    heard = (("last pong", "last_pong_age_s"), ("last frame", "last_inbound_age_s"), ("last audit", "last_audit_age_s"))
    counts = (
        ("on disk", row.get("journaled")),
        ("handled", row.get("handled")),
        ("waiting", row.get("pending")),
        ("open gaps", row.get("gaps_open")),
        ("absent", row.get("absent")),
        ("to send", row.get("outbox_ready")),
        ("dead", row.get("dead")),
        ("reconnects", row.get("reconnects")),
    )
    return markup(
        """<div class="line"><span class="who"><b>{name}</b> <span class="dim">{handle}</span></span> {pill}</div>
{reason}
<p class="dim times">{times}</p>
<dl class="counts">{counts}</dl>
<details id="history-{name}"><summary>History of {name}</summary><ol class="history">{history}</ol></details>""",
        name=row["name"],
        handle=row["handle"],
        pill=pill(*_STATES[row["state"]]),
        reason=markup(
            '<p class="{look}">{why}</p>',
            look="dim" if row["state"] == "live" else "why",
            why=short(row["state_reason"]),
        )
        if row["state_reason"]
        else NOTHING,
        times=joined(
            markup("<span>{what} {at}</span> ", what=what, at=aged(row[field]))
            for what, field in heard
            if row.get(field) is not None
        ),
        counts=joined(
            markup(
                "<div{wanted}><dt>{what}</dt><dd>{count}</dd></div>",
                wanted=Markup(' class="wanted"') if what in ("open gaps", "dead") and count else NOTHING,
                what=what,
                count=f"{count:,}",
            )
            for what, count in counts
            if count is not None
        ),
        history=joined(
            markup(
                "<li>{at} {pill} {reason}</li>",
                at=clock(change["at"]),
                pill=pill(*_STATES[change["state"]]),
                reason=change["reason"],
            )
            for change in row["history"][: -_HISTORY - 1 : -1]
        ),
    )


def _plugins(plugins: Sequence[Row], paused: Collection[tuple[str, str]]) -> Markup:
    """paused: (identity, conversation) of what is paused."""
    if not plugins:
        return markup('<p class="empty">No plugin is configured.</p>')
    return markup('<ul class="rows">{rows}</ul>', rows=joined(_plugin(each, paused) for each in plugins))


def _plugin(row: Row, paused: Collection[tuple[str, str]]) -> Markup:
    if "breaker" not in row:
        return markup(
            '<li><div class="line"><b class="who">{name}</b> {pill}</div></li>',
            name=row["name"],
            pill=pill("idle", "not used"),
        )
    breaker = {"closed": ("good", "works"), "open": ("bad", "paused"), "half-open": ("warn", "on trial")}
    deepest = row["deepest"]
    most = max((lane["depth"] for lane in deepest), default=1)
    return markup(
        """<li id="plugin-{name}">
<div class="line"><span class="who"><b>{name}</b> <span class="dim">for {identities}</span></span> {pill}</div>
{trouble}
{held}
{lanes}
</li>""",
        name=row["name"],
        identities=", ".join(row["identities"]),
        pill=pill(*breaker[row["breaker"]]),
        trouble=_out_of_order(row),
        held=joined(_held(row["name"], each) for each in row["held"]),
        lanes=markup(
            '<p class="dim">{lanes}</p><ul class="lanes">{deepest}</ul>',
            lanes=f"{many(row['lanes'], 'conversation', 'conversations')} with something to do"
            + (f", the deepest {len(deepest)}:" if row["lanes"] > len(deepest) else ":"),
            deepest=joined(
                _lane(row["name"], lane, most, (lane["identity"], lane["conversation"]) in paused) for lane in deepest
            ),
        )
        if deepest
        else markup('<p class="dim">Nothing waits.</p>'),
    )


def _out_of_order(row: Row) -> Markup:
    failed = "failed in several conversations in a row: all of them wait for a trial."
    if row["breaker"] != "closed":
        return markup('<p class="why">It {failed}</p>', failed=failed)
    return joined(
        markup('<p class="why">For {identity} it {failed}</p>', identity=each["identity"], failed=failed)
        for each in row["waiting_identities"]
    )


def _lane(plugin: str, lane: Row, most: int, paused: bool) -> Markup:
    return markup(
        """<li><span class="name">{identity} <code>{conversation}</code></span>
<meter min="0" max="{most}" value="{depth}" aria-hidden="true"></meter> <span class="depth">{shown}</span>
{pausing}</li>""",
        identity=lane["identity"],
        conversation=lane["conversation"],
        depth=lane["depth"],
        most=most,
        shown=f"{lane['depth']:,}",
        pausing=pill("warn", "paused") if paused else pause_button(lane, "Pause", key=f"lane-{plugin}"),
    )


def _held(plugin: str, held: Row) -> Markup:
    chosen = {"plugin": plugin, "conversation": held["conversation"], "identity": held["identity"]}
    return markup(
        """<div class="line held"><span><span class="why">holds</span> {identity} <code>{conversation}</code>
behind a dead letter</span> {release}</div>""",
        identity=held["identity"],
        conversation=held["conversation"],
        release=button(
            "Release", "/api/release", chosen, f"{plugin} goes on in {held['conversation']}", about=held["conversation"]
        ),
    )


def _held_lanes(plugins: Sequence[Row]) -> set[tuple[str, str, str]]:
    """(plugin, identity, conversation) of what stands still behind a dead letter."""
    return {(row["name"], held["identity"], held["conversation"]) for row in plugins for held in row.get("held", ())}


def _pauses(pauses: Sequence[Row]) -> Markup:
    more = len(pauses) - _PAUSES_SHOWN
    return markup(
        "{listed}{more}",
        listed=_listed(pauses[:_PAUSES_SHOWN], _pause, "No conversation is paused."),
        more=markup('<p class="dim">and {more} more; see: agentd status --json</p>', more=f"{more:,}")
        if more > 0
        else NOTHING,
    )


def _pause(row: Row) -> Markup:
    return markup(
        """<li>
<div class="line"><span class="who">{identity} <code>{conversation}</code></span>
<span class="actions">{resume}</span></div>
<p>{reason}</p>
<p class="dim">paused {at}, {end}</p>
</li>""",
        identity=row["identity"],
        conversation=row["conversation"],
        resume=resume_button(row),
        reason=_capitalised(short(row["reason"])),
        at=ago(row["paused_at"]),
        end="until it is resumed" if row["until"] is None else until(row["until"]),
    )


def _send(row: Row) -> Markup:
    chosen = {"client_msg_id": row["client_msg_id"], "identity": row["identity"]}
    name = f"the send to {row['target']}"
    may_retry = row["needs_decision"] or row["state"] in ("refused", "expired")
    retry = (
        button("Send it", "/api/outbox/retry", chosen, f"{name} leaves", about=row["target"]) if may_retry else NOTHING
    )
    drop = button(
        "Drop",
        "/api/outbox/drop",
        chosen,
        f"{name} was dropped",
        about=row["target"],
        ask=("Drop this send?", f"It never leaves for {row['target']}. Its row stays in the journal.", "Drop it"),
    )
    content = row["content"].get("text") or "(no text)"
    return markup(
        """<li>
<div class="line"><span class="who">{identity} to <b>{target}</b></span> {pill}</div>
<p class="text">{text}</p>
{error}
<div class="line"><span class="dim">{attempts}, queued {queued}</span> <span class="actions">{retry} {drop}</span></div>
</li>""",
        identity=row["identity"],
        target=row["target"],
        pill=pill(_SEND_STATES[row["state"]], row["state"]),
        text=short(content),
        error=markup('<p class="why">{error}</p>', error=short(row["error"])) if row["error"] else NOTHING,
        attempts=many(row["attempts"], "attempt", "attempts"),
        queued=ago(row["queued_at"]),
        retry=retry,
        drop=drop,
    )


def _letter(held_lanes: Collection[tuple[str, str, str]], row: Row) -> Markup:
    number, plugin = row["number"], row["plugin"]
    if (plugin, row["identity"], row["conversation"]) in held_lanes:
        means = f"{plugin} handles it before anything else in {row['conversation']}, which waits for it, and may send."
    else:
        means = (
            f"It comes to {plugin} by itself, marked late, and {plugin} may send. The conversation goes on meanwhile."
        )
    return markup(
        """<li>
<div class="line"><span class="who"><b>{plugin}</b> for {identity} <code>{conversation}</code></span>
<span class="dim">no. {number}</span></div>
<p class="why">{error}</p>
<div class="line"><span class="dim">{attempts}, {died}</span> <span class="actions">
<button type="button" data-letter="{number}" id="show-{number}" aria-label="Show dead letter {number}">Show</button>
{again} {drop}</span></div>
</li>""",
        plugin=plugin,
        identity=row["identity"],
        conversation=row["conversation"],
        number=number,
        error=short(row["error"]),
        attempts=many(row["attempts"], "attempt", "attempts"),
        died=ago(row["died_at"]),
        again=button(
            "Deliver again",
            "/api/dead/replay",
            {"number": number},
            f"the event of dead letter {number} is delivered again",
            about=f"dead letter {number}",
            ask=(f"Deliver dead letter {number} again?", f"{means} The letter leaves this list.", "Deliver it again"),
        ),
        drop=button(
            "Drop",
            "/api/dead/drop",
            {"number": number},
            f"dead letter {number} was dropped",
            about=f"dead letter {number}",
            ask=(f"Drop dead letter {number}?", "It leaves this list. The event stays in the journal.", "Drop it"),
        ),
    )


def _gap(row: Row) -> Markup:
    looks = {"filled": "good", "absent": "warn", "mixed": "warn", "reset": "idle"}
    outcome = row["outcome"]
    if row["closed_at"] is None:
        told = markup("found {at}, {tries}", at=ago(row["found_at"]), tries=many(row["attempts"], "try", "tries"))
    else:
        told = markup("closed {at}", at=ago(row["closed_at"]))
    return markup(
        """<li>
<div class="line"><span class="who">{identity} <code>{conversation}</code> <b>{seqs}</b></span> {pill}</div>
<p class="dim">{told}{absent}</p>
</li>""",
        identity=row["identity"],
        conversation=row["conversation"],
        seqs=f"{row['start']}" if row["stop"] == row["start"] + 1 else f"{row['start']} to {row['stop'] - 1}",
        pill=pill(looks.get(outcome, "busy"), outcome or "open"),
        told=told,
        absent=f"; {many(row['absent'], 'seq', 'seqs')} never came: {row['reason']}" if row["absent"] else None,
    )


def _record(row: Row) -> Markup:
    text = row["text"]
    marks = [
        word for word, true in (("late", row["late"]), (row["source"], row["source"] not in ("live", "own"))) if true
    ]
    return markup(
        """<li class="{kind}"><div class="line"><span class="who">{who}
<span class="dim"><code>{conversation}</code> #{seq}</span> {marks}</span> {at}</div>
<div class="line"><p class="text">{text}</p>
<button type="button" class="quiet" data-explain="{position}" data-of="{identity}"
aria-label="Explain {conversation} #{seq}">Explain</button></div></li>""",
        position=row["position"],
        identity=row["identity"],
        kind="own" if row["own"] else "in",
        who=markup("<b>{identity}</b> said", identity=row["identity"])
        if row["own"]
        else markup("<b>{sender}</b> to {identity}", sender=short(row["sender"]), identity=row["identity"]),
        conversation=row["conversation"],
        seq=row["seq"],
        marks=joined(markup("{pill} ", pill=pill("idle", mark)) for mark in marks),
        at=clock(row["received_at"]),
        text=short(text) if text else markup('<span class="dim">{kind}</span>', kind=row["type"]),
    )
