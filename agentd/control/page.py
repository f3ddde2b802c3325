"""The page of the daemon, whole, and each of its parts by name.

The page is whole as the server sends it; a script then replaces each part when it has changed, so a part is a function
of its data alone and says nothing that changes with the clock: times are given as such, and the script turns them into
"12 s ago".

Always true: whatever a peer, a plugin or a configuration wrote is escaped. A state is told in words, never by colour
alone.
Not here: what is in a part (standing.py, handling.py, mail.py), when it is made (feed.py), who may see it (http.py),
how it looks (static/page.css).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from agentd.control.handling import pauses, plugins
from agentd.control.mail import gaps, letters, outbox
from agentd.control.markup import NOTHING, Markup, joined, markup
from agentd.control.pieces import DURATIONS, Row, ago, iso
from agentd.control.readings import why_not_ready
from agentd.control.standing import glance, health, identities_list, identity, part_of, shown_identities
from agentd.core.health import Limits

LIST = "identities"
"""The part that lists the identities: an empty place for each, since each is a part of its own."""

ECHO = "@echo"
"""Who answers on the embedded hub."""


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


def parts(
    status: Row, limits: Limits, gap_rows: Sequence[Row], sends: Sequence[Row], letter_rows: Sequence[Row], listed: int
) -> dict[str, str]:
    """Every part by its name. listed: how many sends and letters were asked for."""
    now = time.monotonic()
    identities = status["identities"]
    return {
        "health": health(status, why_not_ready(status, limits, now), now),
        "glance": glance(status),
        LIST: identities_list(identities, {}),
        **{part_of(each): identity(each) for each in shown_identities(identities)},
        "plugins": plugins(status),
        "pauses": pauses(status["pauses"]),
        "outbox": outbox(status, sends, listed),
        "dead": letters(status, letter_rows, listed),
        "gaps": gaps(status, gap_rows),
    }


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
  <section id="part-health" aria-label="Health">{health}</section>
  <nav aria-label="At a glance"><ul id="part-glance" class="glance">{glance}</ul></nav>
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
<p id="flows" class="hidden" role="status"></p>
<div class="notes">
  <div id="said" role="status"></div>
  <div id="failed" role="alert"></div>
</div>
{dialogs}
<noscript><p class="lost">Without scripts this page shows one moment; load it again for the next.</p></noscript>""",
        version=status["version"],
        pid=status["pid"],
        since=ago(iso(time.time() - status["uptime_s"])),
        health=parts["health"],
        glance=parts["glance"],
        identities=_card(LIST, "Identities", identities_list(status["identities"], parts)),
        events=_events_card(),
        talk=_talk_card() if status["hub_url"] is not None else NOTHING,
        plugins=_card("plugins", "Plugins", parts["plugins"]),
        pauses=_card("pauses", "Paused conversations", parts["pauses"], beside=_PAUSE_ONE),
        outbox=_card("outbox", "Outbox", parts["outbox"]),
        dead=_card("dead", "Dead letters", parts["dead"]),
        gaps=_card("gaps", "Gaps", parts["gaps"]),
        dialogs=_dialogs(),
    )
    return _frame("agentd", body)


# -- frames ---------------------------------------------------------------------------------------------------------

_PAUSE_ONE = Markup('<button type="button" class="quiet" id="pause-one" data-pause-any>Pause one</button>')


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


def _card(name: str, title: str, body: Markup, beside: Markup = NOTHING) -> Markup:
    """A part in its frame. beside: what stands beside its title."""
    return markup(
        """<section class="card" aria-labelledby="title-{name}">
<div class="head"><h2 id="title-{name}" tabindex="-1">{title}</h2>{beside}</div>
<div id="part-{name}">{body}</div>
</section>""",
        name=name,
        title=title,
        beside=beside,
        body=body,
    )


def _events_card() -> Markup:
    return markup("""<section class="card" aria-labelledby="title-events">
<div class="head"><h2 id="title-events" tabindex="-1">Events</h2>
<button type="button" class="quiet" id="hold" aria-pressed="false">Hold the list</button></div>
<p class="empty" id="no-events">Events appear here when they are on disk.</p>
<ol id="events" class="flow" tabindex="-1" aria-labelledby="title-events" reversed></ol>
</section>""")


def _talk_card() -> Markup:
    return markup(
        """<section class="card" aria-labelledby="title-talk">
<div class="head"><h2 id="title-talk" tabindex="-1">Talk to {echo}</h2></div>
<ol id="talk" class="talk" role="log" tabindex="0" aria-label="What was said"></ol>
<form id="say" class="say">
<label for="say-text" class="hidden">Your message</label>
<input id="say-text" name="text" type="text" maxlength="2000" autocomplete="off" placeholder="Say something" required>
<button>Send</button>
</form>
</section>""",
        echo=ECHO,
    )


def _dialogs() -> Markup:
    return markup(
        """<dialog id="explained" aria-labelledby="explained-title">
  <h2 id="explained-title" tabindex="-1" autofocus>What became of an event</h2>
  <div id="explanation"></div>
  <form method="dialog"><p class="actions"><span id="explained-act"></span> <button>Close</button></p></form>
</dialog>
<dialog id="letter" aria-labelledby="letter-title">
  <h2 id="letter-title" tabindex="-1" autofocus>Dead letter</h2>
  <dl id="letter-event" class="facts"></dl>
  <pre id="letter-trace" tabindex="0" role="region" aria-label="Traceback"></pre>
  <form method="dialog"><p class="actions"><button>Close</button></p></form>
</dialog>
<dialog id="confirm" aria-labelledby="confirm-title" aria-describedby="confirm-words">
  <form method="dialog">
    <h2 id="confirm-title"></h2>
    <p id="confirm-words"></p>
    <p class="actions"><button value="no" autofocus>Cancel</button>
    <button value="yes" class="danger" id="confirm-yes"></button></p>
  </form>
</dialog>
<dialog id="pause" aria-labelledby="pause-title" aria-describedby="pause-words">
  <form id="pause-form" method="dialog">
    <h2 id="pause-title">Pause a conversation?</h2>
    <p id="pause-words">No handler runs in it for that long. Its mail is kept, and handled in order once it goes on.</p>
    <div class="fields">
      <label for="pause-identity">Identity</label> <select id="pause-identity" required></select>
      <label for="pause-conversation">Conversation</label>
      <input id="pause-conversation" type="text" maxlength="256" autocomplete="off" spellcheck="false"
autocapitalize="off" list="pause-known" placeholder="its id, or @peer" required>
      <label for="pause-for">For how long</label> <select id="pause-for">{durations}</select>
    </div>
    <datalist id="pause-known"></datalist>
    <p id="pause-failed" class="why" role="alert"></p>
    <p class="actions"><button type="button" data-close>Cancel</button>
    <button id="pause-yes" class="primary">Pause it</button></p>
  </form>
</dialog>""",
        durations=joined(
            markup('<option value="{for_s}">{words}</option>', for_s=for_s, words=words) for for_s, words in DURATIONS
        ),
    )
