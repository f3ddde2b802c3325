"""The verbs on what is recorded: export and explain.

Always true: an export's file is there whole or not at all, for its owner only. Progress is for terminals.
Not here: parsing words (words/), the format of the lines (core/exported.py), what the verbs mean (the daemon).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click

from agentd.cli.printing import echo_json
from agentd.cli.tables import number
from agentd.control.client import Client, Export
from agentd.logs import printable

_PROGRESS_S = 0.2
_CLEARED = "\r\x1b[K"


def export(daemon: Client, identity: str | None, conversation: str | None, since: str | None, to: Path) -> None:
    """Write recorded events to a file or to stdout."""
    to_stdout = str(to) == "-"
    quiet = not sys.stderr.isatty() or (to_stdout and sys.stdout.isatty())
    count = 0
    told_at = time.monotonic()
    with daemon.export(identity, conversation, since) as exported, _written(to) as out:
        for line in exported:
            out.write(line)
            count += 1
            if not quiet and time.monotonic() - told_at >= _PROGRESS_S:
                told_at = time.monotonic()
                click.echo(f"{_CLEARED}{_progress(count, line, exported)}", nl=False, err=True)
    place = "" if to_stdout else f" to {to}"
    noun = "event" if count == 1 else "events"
    click.echo(f"{'' if quiet else _CLEARED}exported {number(count)} {noun}{place}", err=True)
    if exported.unreadable:
        why = "their identities are not configured, or they cannot be read any more"
        click.echo(f"left out {number(exported.unreadable)}: {why}", err=True)


def _progress(count: int, line: bytes, exported: Export) -> str:
    position = json.loads(line)["position"]
    return f"{number(count)} events, {100 * position // max(1, exported.up_to)} %"


@contextlib.contextmanager
def _written(to: Path) -> Iterator[IO[bytes]]:
    """Stdout, or a file that takes its name when all is written. Raises click's errors."""
    if str(to) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = to.with_name(f"{to.name}.part")
    try:
        # What people said to each other is for the owner's eyes.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                yield out
            unfinished.replace(to)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise click.ClickException(f"{to} cannot be written ({error.strerror}); name another file with --to") from None


def explain(daemon: Client, event: str, identity: str | None, plugin: str | None, *, as_json: bool) -> None:
    """Show what the plugins make of an event."""
    answer = daemon.explain(event, identity, plugin)
    if as_json:
        echo_json(answer)
        return
    for index, found in enumerate(answer["events"]):
        if index:
            click.echo()
        _echo_event(found["event"])
        if not found["plugins"]:
            click.echo("no plugin is asked: none of them serves this identity")
        for lane in found["plugins"]:
            _echo_lane(lane)


def _echo_event(row: Mapping[str, Any]) -> None:
    notes = "".join(f", {note}" for note in ("own", "late") if row.get(note))
    place = f"identity {row['identity']}, {row['conversation']} #{row['seq']}, position {row['position']}"
    click.echo(f"{printable(row['id'])} from {printable(row['sender'])}, {place}{notes}")
    said = printable(row["text"]) if row.get("text") else f"[{row['type']}]"
    click.echo(f"received {row['received_at']}: {said}")


def _echo_lane(lane: Mapping[str, Any]) -> None:
    click.echo(f"\nplugin {lane['plugin']}: {_fate(lane)}")
    if (pause := lane.get("pause")) is not None:
        until = "until it is resumed" if pause["until"] is None else f"until {pause['until']}"
        click.echo(f"  the conversation is paused {until}: {printable(pause['reason'])}")
    for outcome in lane.get("outcomes", ()):
        click.echo(f"  {outcome['at']} {_outcome(outcome)}")
    if not lane["handlers"]:
        click.echo("  it has no handlers")
    for handler in lane["handlers"]:
        told = {True: "matches", False: "does not match", None: "cannot be asked: a filter raised"}[handler["matches"]]
        click.echo(f"  {handler['name']} ({handler['place']}): {told}")
        for each in handler["filters"]:
            click.echo(f"    {_filter(each)}")


def _outcome(row: Mapping[str, Any]) -> str:
    several = "" if row["first"] == row["last"] else f" (positions {row['first']} to {row['last']})"
    match row["word"]:
        case "set back":
            return f"somebody wanted it to be handled again{several}"
        case "tried again":
            return "somebody wanted its dead letter to be delivered again"
        case word:
            data = "" if row["data"] is None else f" {_value(row['data'])}"
            return f"outcome: {printable(word)}{data}{several}"


def _fate(lane: Mapping[str, Any]) -> str:
    fate = lane["fate"]
    attempts = "1 attempt" if fate["attempts"] == 1 else f"{fate['attempts']} attempts"
    failed = f"after {attempts}: {printable(fate['error'] or 'the process died')}"
    again = " again" if fate.get("replays") else ""
    match fate["state"]:
        case "waiting":
            behind = f" behind position {fate['behind']}, which fails" if fate.get("behind") else ""
            trouble = f": {printable(lane['trouble'])}" if lane.get("trouble") else ""
            out_of_order = "" if lane["breaker"] == "closed" else f"; the plugin as a whole is out of order{trouble}"
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
            return f"dead letter {fate['letter']} {failed}; see: agentd dead show {fate['letter']}"
        case "held":
            held = "behind which the conversation is held"
            return f"dead letter {fate['letter']}, {held}, {failed}; see: agentd dead show {fate['letter']}"
        case "passed_over":
            return "passed over: no handler matches"
        case "never_offered":
            return "never offered: it is older than the plugin's service for this identity"
        case "handled":
            return f"handled{again}"
        case state:
            return str(state)


def _filter(row: Mapping[str, Any]) -> str:
    wanted = f"{row['name']}: wanted {_value(row['wanted'])}"
    if row["error"] is not None:
        return f"! {wanted}, raised {printable(row['error'])}"
    if row["passed"] is None:
        return f"- {wanted}, not asked"
    said = "" if row["name"] == "where" else f", had {_value(row['had'])}"
    return f"{'+' if row['passed'] else '-'} {wanted}{said}"


def _value(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))
