"""The verb that lets a plugin handle again what is recorded: counted and asked, done, or only shown.

Always true: nothing is set back that was not agreed to. With `as_json`, stdout holds JSON lines and nothing else.
Not here: parsing words (words/), what the steps mean (the daemon).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

from agentd.cli.agreeing import agree
from agentd.cli.printing import echo_json_line
from agentd.cli.tables import counted, number
from agentd.control.client import Client
from agentd.logs import printable

_PROGRESS_S = 0.2
_CLEARED = "\r\x1b[K"
_TEXT_MAX_CHARS = 200  # of a message in a dry run

Row = Mapping[str, Any]


class Chosen(NamedTuple):
    """What is handled again. from_seq, since (ISO 8601): where it begins, or None."""

    plugin: str
    identity: str | None
    conversation: str | None
    from_seq: int | None
    since: str | None


def replay(daemon: Client, chosen: Chosen, *, yes: bool, as_json: bool) -> None:
    """Count, ask, set back."""
    first, *_, last = _told(daemon, "count", chosen, "read")
    _echo_json_lines([last], as_json)
    if not last["matches"]:
        click.echo(f"no handler of {chosen.plugin} matches any of {counted(last['events'], 'event')}", err=True)
        return
    matches, events = number(last["matches"]), counted(last["events"], "event")
    places = counted(last["conversations"], "conversation")
    click.echo(f"handlers of {chosen.plugin} match {matches} of {events}, in {places}", err=True)
    click.echo("each match is handled again, and may send again; --dry-run shows what", err=True)
    _echo_unreadable(last)
    _echo_waits(first, "some conversations stand still, and a replay waits there until they go on:")
    agree(f"set {places} back?", yes)
    done: Row = {}
    for done in _told(daemon, "set_back", chosen, "set back"):
        _echo_json_lines([done], as_json and ("set_back" in done or "done" in done))
    if done["conversations"]:
        what = f"{counted(done['conversations'], 'conversation')} set back, {counted(done['events'], 'event')} to go"
        click.echo(f"{what}; see: agentd status", err=True)
    _echo_waits(done, "not set back yet, but once they go on, unless the daemon is stopped before:")


def rehearse(daemon: Client, chosen: Chosen, *, as_json: bool) -> None:
    """Show what would happen."""
    click.echo("nothing is sent or stored, but a handler's own requests and files happen", err=True)
    last: Row = {}
    for last in _told(daemon, "rehearse", chosen, "read"):
        _echo_json_lines([last], as_json and ("event" in last or "done" in last))
        if not as_json and "event" in last:
            _echo_rehearsed(last)
    matches, events = number(last["matches"]), counted(last["events"], "event")
    click.echo(
        f"{matches} of {events} match, in {counted(last['conversations'], 'conversation')}: "
        f"{counted(last['sends'] + last['sends_at_once'], 'send')}, {counted(last['failed'], 'failure')}",
        err=True,
    )
    _echo_unreadable(last)


def _told(daemon: Client, step: str, chosen: Chosen, verb: str) -> Iterator[dict[str, Any]]:
    """The lines of a step but for those that only tell how far it is: these are shown on a terminal."""
    quiet = not sys.stderr.isatty()
    shown = False
    told_at = time.monotonic()
    of, read, back = 0, 0, 0
    for line in daemon.replay(step, *chosen):
        of = of or line.get("events", 0)  # the first line tells how many there are
        read = line.get("read", read)
        back += "set_back" in line
        if not quiet and time.monotonic() - told_at >= _PROGRESS_S:
            told_at = time.monotonic()
            done = (
                f"{counted(back, 'conversation')} set back" if back else f"{number(read)} of {number(of)} events {verb}"
            )
            click.echo(f"{_CLEARED}{done}", nl=False, err=True)
            shown = True
        if "read" not in line:
            if shown:
                click.echo(_CLEARED, nl=False, err=True)
                shown = False
            yield line


def _echo_waits(told: Row, heading: str) -> None:
    if not told["waiting"]:
        return
    click.echo(heading, err=True)
    for each in told["waits"]:
        click.echo(f"  {printable(each['conversation'])} of {each['identity']}: {printable(each['why'])}", err=True)
        click.echo(f"    {printable(each['remedy'])}", err=True)
    if (more := told["waiting"] - len(told["waits"])) > 0:
        click.echo(f"  and {counted(more, 'conversation')} more", err=True)


def _echo_unreadable(told: Row) -> None:
    if told["unreadable"]:
        click.echo(f"{counted(told['unreadable'], 'event')} cannot be read any more", err=True)


def _echo_rehearsed(line: Row) -> None:
    event = line["event"]
    said = printable(event["text"][:_TEXT_MAX_CHARS]) if event.get("text") else f"[{printable(event['type'])}]"
    place = click.style(f"{printable(event['conversation'])} #{event['seq']}", bold=True)
    click.echo(f"{place} position {event['position']}, {printable(event['sender'])}: {said}")
    for effect in _effects(line):
        click.echo(f"  {printable(effect)}")


def _effects(line: Row) -> Iterator[str]:
    yield f"handled by {', '.join(line['handlers']) or 'nobody: a filter raised'}"
    for send in line["sends_at_once"]:
        yield f"sends at once {_send(send, line)}"
    if (failure := line["failure"]) is not None:
        by = f" in {failure['handler']}" if failure["handler"] else ""
        yield f"FAILS{by}: {failure['error']}"
        return  # what it staged would go nowhere
    for send in line["sends"]:
        yield f"sends {_send(send, line)}"
    for put in line["state"]:
        shared = " for the whole plugin" if put["shared"] else ""
        yield f"removes {put['key']}{shared}" if put["value"] is None else f"keeps {put['key']}{shared}"
    for reminder in line["reminders"]:
        when = f"at {reminder['at']}" if reminder["at"] else f"in {reminder['after_s']:g} s"
        yield f"wants to be woken {when}"
    for outcome in line["outcomes"]:
        data = "" if outcome["data"] is None else f" {json.dumps(outcome['data'], ensure_ascii=False)}"
        yield f"outcome: {outcome['word']}{data}"


def _send(send: Row, line: Row) -> str:
    speaker = "" if send["identity"] == line["event"]["identity"] else f" as {send['identity']}"
    content = send["content"]
    text = content.get("text") or json.dumps(content, ensure_ascii=False)
    return f"to {send['target']}{speaker}: {text}"


def _echo_json_lines(lines: Sequence[Row], wanted: bool) -> None:
    if wanted:
        for line in lines:
            echo_json_line(line)
