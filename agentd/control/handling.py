"""How events are handled, as the page shows it: plugins with their lanes, and conversations in which no handler runs.

Always true: whatever a peer, a plugin or a configuration wrote is escaped; every list is cut, and says so.
Not here: what a lane is (core/lanes.py), the page around it (page.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from agentd.control.markup import Markup, joined, markup
from agentd.control.pieces import (
    Row,
    ago,
    and_more,
    button,
    listed,
    many,
    pause_button,
    pill,
    place,
    resume_button,
    sentence,
    short,
    until,
)

_HELD_SHOWN = 10
_NAMES_SHOWN = 5
_TROUBLES_SHOWN = 5
_PAUSES_SHOWN = 20  # a policy of holding stale mail may pause thousands at once

_BREAKER = {"closed": ("good", "works"), "open": ("bad", "out of order"), "half-open": ("warn", "on trial")}


def plugins(status: Row) -> Markup:
    """Every plugin: whether it works, what it holds, its deepest lanes."""
    paused = {(each["identity"], each["conversation"]) for each in status["pauses"]}
    return listed(status["plugins"], partial(_plugin, paused), "No plugin is configured.")


def _plugin(paused: Collection[tuple[str, str]], row: Row) -> Markup:
    if "breaker" not in row:
        return markup(
            '<li><div class="line"><b class="who">{name}</b> {pill}</div></li>',
            name=row["name"],
            pill=pill("idle", "not used"),
        )
    held = row["held"]
    return markup(
        """<li id="plugin-{name}">
<div class="line"><span class="who"><b>{name}</b> <span class="dim">for {identities}</span></span> {pill}</div>
{troubles}
{held}{more_held}
{lanes}
</li>""",
        name=row["name"],
        identities=_names(row["identities"]),
        pill=pill(*_BREAKER[row["breaker"]]),
        troubles=_troubles(row),
        held=joined(_held(row["name"], each) for each in held[:_HELD_SHOWN]),
        more_held=and_more(len(held) - _HELD_SHOWN, "agentd status --json"),
        lanes=_lanes(row, paused),
    )


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _troubles(row: Row) -> Markup:
    """What keeps a plugin from working, if anything does."""
    told = [*_out_of_order(row)]
    if error := row.get("reload_error"):
        told.append(f"It was not reloaded, and the generation before runs: {error}")
    if (worker := row.get("worker")) is not None and not worker["up"]:
        told.append(f"It has no process at this moment: {worker['reason']}")
    told += (f"It gave a timer of {each['identity']} up: {each['error']}" for each in row["timers_given_up"])
    return markup(
        "{told}{more}",
        told=joined(markup('<p class="why">{words}</p>', words=short(words)) for words in told[:_TROUBLES_SHOWN]),
        more=and_more(len(told) - _TROUBLES_SHOWN, "agentd status"),
    )


def _out_of_order(row: Row) -> Iterator[str]:
    if row["breaker"] != "closed":
        yield f"It failed in several conversations in a row, and all of them wait for a trial{_because(row)}"
    for each in row["waiting_identities"]:
        failed = f"For {each['identity']} it failed in several conversations in a row"
        yield f"{failed}, and these wait for a trial{_because(each)}"


def _because(row: Row) -> str:
    return f": {row['trouble']}" if row["trouble"] else "."


def _lanes(row: Row, paused: Collection[tuple[str, str]]) -> Markup:
    deepest = row["deepest"]
    if not deepest:
        return markup('<p class="dim">Nothing waits.</p>')
    count = many(row["lanes"], "conversation", "conversations")
    cut = row["lanes"] > len(deepest)
    most = max(lane["depth"] for lane in deepest)
    return markup(
        '<p class="dim">{told}</p><ul class="lanes">{lanes}</ul>',
        told=f"{count} with something to do{f', the deepest {len(deepest)}' if cut else ''}:",
        lanes=joined(
            _lane(row["name"], lane, most, paused=(lane["identity"], lane["conversation"]) in paused)
            for lane in deepest
        ),
    )


def _lane(plugin: str, lane: Row, most: int, *, paused: bool) -> Markup:
    return markup(
        """<li><span class="name">{place}</span>
<meter min="0" max="{most}" value="{depth}" aria-hidden="true"></meter> <span class="depth">{shown}</span>
{pausing}</li>""",
        place=place(lane),
        depth=lane["depth"],
        most=most,
        shown=f"{lane['depth']:,}",
        pausing=pill("warn", "paused") if paused else pause_button(lane, "Pause", key=f"lane-{plugin}"),
    )


def _held(plugin: str, held: Row) -> Markup:
    chosen = {"plugin": plugin, "conversation": held["conversation"], "identity": held["identity"]}
    conversation = short(held["conversation"])
    return markup(
        """<div class="line held"><span><span class="why">holds</span> {place} behind a dead letter</span>
{release}</div>""",
        place=place(held),
        release=button(
            "Release",
            "/api/release",
            chosen,
            f"{plugin} goes on in {conversation}",
            about=held["conversation"],
            ask=(
                f"Go on in {conversation}?",
                f"{plugin} handles what waits there, without what the dead letter is about. The letter stays, and can "
                "only be delivered late from then on.",
                "Go on",
            ),
        ),
    )


def held_lanes(plugins: Sequence[Row]) -> set[tuple[str, str, str]]:
    """(plugin, identity, conversation) of what stands still behind a dead letter."""
    return {(row["name"], held["identity"], held["conversation"]) for row in plugins for held in row.get("held", ())}


def pauses(rows: Sequence[Row]) -> Markup:
    """Conversations in which no handler runs, with the reason and the end."""
    more = and_more(len(rows) - _PAUSES_SHOWN, "agentd status --json")
    return listed(rows[:_PAUSES_SHOWN], _pause, "No conversation is paused.", more)


def _pause(row: Row) -> Markup:
    return markup(
        """<li>
<div class="line"><span class="who">{place}</span> <span class="actions">{resume}</span></div>
<p>{reason}</p>
<p class="dim">paused {at}, {end}</p>
</li>""",
        place=place(row),
        resume=resume_button(row, key="paused"),
        reason=sentence(short(row["reason"])),
        at=ago(row["paused_at"]),
        end="until it is resumed" if row["until"] is None else until(row["until"]),
    )
