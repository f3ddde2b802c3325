"""The verbs that ask a running daemon, and show the answer.

Always true: neither the daemon nor a network library is imported. With `as_json`, stdout holds JSON and nothing else.
Not here: parsing words (words/), the far end (control).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from agentd.cli.pausing import echo_pauses, echo_plugins
from agentd.cli.printing import count_column, echo_json, echo_json_line, echo_table, paragraph
from agentd.cli.reached import reached
from agentd.cli.tables import STATE_COLOURS, Column, age, clock, since
from agentd.control.address import find_socket
from agentd.control.client import Client
from agentd.errors import ConfigError
from agentd.logs import printable

_MOMENT_S = 1.0
_SETTLED_BADLY = ("refused", "expired", "dropped")


def client(config: Path | None, environ: Mapping[str, str]) -> Client:
    """Who asks the daemon that these would run."""
    return Client(find_socket(config, environ))


def status(daemon: Client, name: str | None, *, as_json: bool) -> None:
    """Show the daemon and its identities."""
    answer = daemon.status(name)
    if as_json:
        echo_json(answer)
        return
    click.echo(
        f"agentd {answer.get('version', '?')}, pid {answer.get('pid', '?')}, up {age(answer.get('uptime_s'))}, "
        f"state in {printable(answer.get('state_dir', '?'))}"
    )
    if answer.get("hub_url"):
        click.echo(f"embedded hub at {answer['hub_url']}")
    click.echo()
    _echo_identities(answer["identities"])
    echo_plugins(answer)
    echo_pauses(answer)
    for plugin in answer["plugins"]:
        _echo_trouble(plugin)
    for line in reached(answer):
        click.echo(line)


def _echo_trouble(plugin: Mapping[str, Any]) -> None:
    """What keeps a plugin from working, if anything does."""
    if error := plugin.get("reload_error"):
        click.echo(f"plugin {plugin['name']}: not reloaded, the generation before runs: {printable(error)}")
    if plugin.get("breaker", "closed") != "closed":
        click.echo(f"plugin {plugin['name']}: out of order as a whole, its conversations wait; {_trial(plugin)}")
    for each in plugin.get("waiting_identities", ()):
        click.echo(
            f"plugin {plugin['name']}: out of order for {each['identity']}, whose conversations wait; {_trial(each)}"
        )
    worker = plugin.get("worker")
    if worker is not None and not worker["up"]:
        next_in_s = worker["next_start_in_s"]
        when = "is being started" if next_in_s is None else f"starts in {age(next_in_s)}"
        click.echo(f"plugin {plugin['name']}: has no process, the next {when}: {printable(worker['reason'])}")
    for timer in plugin.get("timers_given_up", ()):
        click.echo(f"plugin {plugin['name']}: gave a timer of {timer['identity']} up: {printable(timer['error'])}")
    for held in plugin.get("held", ()):
        place = f"{held['identity']} {held['conversation']}"
        about = f"{place} behind a dead letter ({held['event_id']})"
        click.echo(f"plugin {plugin['name']}: holds {printable(about)}")


def _trial(row: Mapping[str, Any]) -> str:
    when = "on trial" if row.get("trial_in_s") is None else f"the next trial in {age(row['trial_in_s'])}"
    return f"{when}: {printable(row['trouble'])}" if row.get("trouble") else when


def release(daemon: Client, plugin: str, conversation: str, *, identity: str | None, as_json: bool) -> bool:
    """Let a plugin go on in a conversation. False if it held none."""
    released = daemon.release(plugin, conversation, identity)
    if as_json:
        echo_json({"released": released})
    else:
        click.echo(f"{plugin} goes on in {conversation}" if released else f"{plugin} does not hold {conversation}")
    return released > 0


def reload(daemon: Client, *, as_json: bool) -> None:
    """Have the configuration read again, and show what that changed. Raises ConfigError with all problems."""
    try:
        answer = daemon.reload()
    except ConfigError as error:
        if as_json:
            echo_json({"ok": False, "problems": list(error.problems)})
        raise
    if as_json:
        echo_json({"ok": True, **answer})
        return
    told = [
        f"{singular} {what}: {', '.join(names)}"
        for kind, singular in (("identities", "identity"), ("plugins", "plugin"))
        for what, names in answer[kind].items()
        if names
    ]
    click.echo("\n".join(told) or "nothing has changed")
    for name in answer["at_next_start"]:
        click.echo(f"note: {name} takes effect at the next start", err=True)
    for place in answer["still_running"]:
        click.echo(f"note: {place}: a handler still runs, and ends as it ends", err=True)


def upgrade(daemon: Client, *, as_json: bool) -> None:
    """Have the installed version take over, and tell who runs now."""
    answer = daemon.upgrade()
    if as_json:
        echo_json(answer)
        return
    click.echo(f"agentd {answer['version']} has taken over, pid {answer['pid']}")
    click.echo(f"before it: agentd {answer['former_version']}, pid {answer['former_pid']}", err=True)
    if turns := answer["turns"]:
        ends = "1 turn that has begun ends" if turns == 1 else f"{turns} turns that have begun end"
        click.echo(f"note: {ends} there; see: agentd status", err=True)


def _echo_identities(identities: list[dict[str, Any]]) -> None:
    now = datetime.now(UTC)
    columns = (
        Column("IDENTITY", lambda row: str(row["name"])),
        Column("HANDLE", lambda row: row.get("handle") or "-", 5),
        Column("STATE", lambda row: str(row["state"]), colour=lambda row: STATE_COLOURS.get(row["state"])),
        Column("FOR", lambda row: since(row.get("state_since"), now), 4),
        Column("LAST IN", lambda row: age(row.get("last_inbound_age_s")), 3),
        count_column("CONV", "conversations", 9),
        count_column("JOURNALED", "journaled", 6),
        count_column("HANDLED", "handled", 7),
        count_column("PENDING", "pending", 0),
        count_column("GAPS", "gaps_open", 1),
        count_column("ABSENT", "absent", 8),
        count_column("DEAD", "dead", 1),
        count_column("OUTBOX", "outbox_ready", 2),
        count_column("UNKNOWN", "outbox_unknown", 8),
    )
    echo_table(columns, identities)
    for row in identities:
        if reason := row.get("state_reason"):
            click.echo(f"{row['name']}: {printable(reason)}")


def send(
    daemon: Client,
    target: str,
    text: str,
    *,
    identity: str | None,
    wait_s: float,
    key: str | None,
    as_json: bool,
) -> bool:
    """Send a text and show what became of it, and the reply. False if it was refused."""
    if text == "-":
        text = _read_from_stdin().removesuffix("\n")
    if not text:
        raise click.UsageError("there is nothing to say: TEXT is empty")
    with _patience("the message is kept; waiting for the reply (Ctrl-C ends the waiting only)"):
        answer = daemon.send(target, {"text": text}, identity=identity, wait_s=wait_s, client_msg_id=key)
    if as_json:
        echo_json(answer)
    else:
        click.echo(printable(_outcome(answer, target, wait_s)), err=True)
        if reply := answer.get("reply"):
            click.echo(f"{printable(reply['sender'])}: {paragraph(reply['text'] or '')}")
    return answer["state"] not in _SETTLED_BADLY


def _read_from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise click.UsageError("what came on stdin is not UTF-8") from None


def _outcome(answer: Mapping[str, Any], target: str, wait_s: float) -> str:
    key = f"key {answer['client_msg_id']}"
    match answer["state"]:
        case "sent":
            waited = "" if answer.get("reply") or not wait_s else f"; no reply within {wait_s:g} s"
            return f"sent to {target} as seq {answer.get('seq')}, {key}{waited}"
        case "refused" | "expired" | "dropped" as state:
            reason = answer.get("error") or "the platform gave no reason"
            return f"{state}: {reason}, {key}{_misspelt(target)}"
        case "unknown":
            return f"sent, but no answer came: the same key is tried again, {key}"
        case _:
            return f"on disk; goes out as soon as the platform takes it, {key}"


def _misspelt(target: str) -> str:
    """A hint for who left out the sign of a handle: ids of conversations have an underscore."""
    return "" if target.startswith("@") or "_" in target else f"; a handle has an @ before it: @{target}"


@contextlib.contextmanager
def _patience(told: str) -> Iterator[None]:
    """Tell somebody at a terminal what goes on, should it take longer than a moment."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(_MOMENT_S, lambda: click.echo(told, err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tail(daemon: Client, name: str | None, position: int | None, *, as_json: bool) -> None:
    """Show records as they come, until interrupted."""
    if position is None and not as_json and sys.stderr.isatty():
        click.echo("what is committed from now on; --since 0 begins at the start, Ctrl-C ends it", err=True)
    for record in daemon.tail(name, position):
        if as_json:
            echo_json_line(record)
        else:
            click.echo(_record(record))


def _record(record: Mapping[str, Any]) -> str:
    late = " (late)" if record.get("late") else ""
    said = record.get("text")
    words = f": {printable(said)}" if said else f" [{printable(record.get('type', 'event'))}]"
    place = click.style(f"{printable(record['conversation'])} #{record['seq']}", dim=True)
    return f"{clock(record['received_at'])} {record['identity']} {place}{late} {printable(record['sender'])}{words}"


def gaps(daemon: Client, name: str | None, *, closed_too: bool, limit: int, as_json: bool) -> None:
    """List gaps."""
    found = daemon.gaps(name, open_only=not closed_too, limit=limit)
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo("no gaps" if closed_too else "no open gaps", err=True)
        return
    now = datetime.now(UTC)
    columns = (
        Column("IDENTITY", lambda row: str(row["identity"])),
        Column("CONVERSATION", lambda row: str(row["conversation"])),
        Column("SEQS", lambda row: f"{row['start']}-{row['stop'] - 1}"),
        Column("FOUND", lambda row: since(row.get("found_at"), now), 2),
        count_column("ATTEMPTS", "attempts", 3),
        Column("OUTCOME", lambda row: row.get("outcome") or "open"),
        count_column("ABSENT", "absent", 1),
        Column("REASON", lambda row: row.get("reason") or "", 1),
    )
    echo_table(columns, found)
