"""What became of an event, and why, in words: those of `agentd explain` and of the page.

Always true: what somebody wrote is written out so that it can hide nothing on a terminal.
Not here: finding it out (operations/explaining.py), how it is laid out (cli/recording.py, explained.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentd.logs import printable

Row = Mapping[str, Any]

MATCHES = {True: "matches", False: "does not match", None: "cannot be asked: a filter raised"}


def told_fate(lane: Row) -> str:
    """What became of the event in a lane, as `explain` gives it."""
    fate = lane["fate"]
    attempts = "1 attempt" if fate["attempts"] == 1 else f"{fate['attempts']} attempts"
    failed = f"after {attempts}: {printable(fate['error'] or 'the process died')}"
    again = " again" if fate.get("replays") else ""
    match fate["state"]:
        case "waiting":
            behind = f" behind position {fate['behind']}, which fails" if fate.get("behind") else ""
            trouble = f": {printable(lane['trouble'])}" if lane.get("trouble") else ""
            out_of_order = "" if lane["breaker"] == "closed" else f"; the plugin is out of order{trouble}"
            return f"waiting{again}{behind}{out_of_order}"
        case "running":
            nth = f", attempt {fate['attempts'] + 1}" if fate["attempts"] else ""
            return f"running{again} at this moment{nth}"
        case "failing":
            return f"failing, next attempt not before {fate['not_before']}, {failed}"
        case "paused":
            return f"waiting{again}, since its conversation is paused"
        case "aside":
            tried = f", {failed}" if fate["attempts"] else ""
            return f"comes by itself not before {fate['not_before']}, while the conversation goes on{tried}"
        case "passed":
            return "passed: it had grown stale, and newer mail said more"
        case "dead":
            return f"dead letter {fate['letter']} {failed}"
        case "held":
            return f"dead letter {fate['letter']}, behind which the conversation is held, {failed}"
        case "passed_over":
            return "passed over: no handler matches"
        case "never_offered":
            return "never offered: it is older than the plugin's service for this identity"
        case "handled":
            return f"handled{again}"
        case state:
            return str(state)


def told_pause(pause: Row) -> str:
    """Why no handler runs in the conversation."""
    until = "until it is resumed" if pause["until"] is None else f"until {pause['until']}"
    return f"the conversation is paused {until}: {printable(pause['reason'])}"


def told_outcome(row: Row) -> str:
    """What a turn came to, or what somebody wanted."""
    several = "" if row["first"] == row["last"] else f" (positions {row['first']} to {row['last']})"
    match row["word"]:
        case "set back":
            return f"somebody wanted it to be handled again{several}"
        case "tried again":
            return "somebody wanted its dead letter to be delivered again"
        case word:
            data = "" if row["data"] is None else f" {_value(row['data'])}"
            return f"outcome: {printable(word)}{data}{several}"


def filter_passed(row: Row) -> str:
    """What a filter said: "passed", "failed", "raised" or "not asked"."""
    if row["error"] is not None:
        return "raised"
    return {True: "passed", False: "failed", None: "not asked"}[row["passed"]]


def told_filter(row: Row) -> str:
    """What a filter wanted and what the event had."""
    wanted = f"{row['name']}: wanted {_value(row['wanted'])}"
    match filter_passed(row):
        case "raised":
            return f"{wanted}, raised {printable(row['error'])}"
        case "not asked":
            return f"{wanted}, not asked"
    return wanted if row["name"] == "where" else f"{wanted}, had {_value(row['had'])}"


def _value(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))
