"""The verbs on what did not get through: sends in the outbox, and dead letters.

Always true: with `as_json`, stdout holds JSON and nothing else. Nothing is dropped that was not named and agreed to.
Not here: parsing words (words/), what the verbs mean (the daemon).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from agentd.cli.agreeing import agree
from agentd.cli.printing import count_column, echo_json, echo_table, paragraph, word
from agentd.cli.tables import Column, Row, since
from agentd.control.client import Client
from agentd.logs import printable

_WORDS_MAX = 60  # of a message's text in a list
_SEND_COLOURS = {"refused": "red", "expired": "red", "unknown": "yellow", "dropped": "bright_black", "sent": "green"}


def sends(daemon: Client, name: str | None, *, states: Sequence[str], every: bool, limit: int, as_json: bool) -> None:
    """List sends; of every state if `every`."""
    from agentd.core.events import OPEN_STATES, SETTLED_STATES

    wanted = (*OPEN_STATES, *SETTLED_STATES) if every else states or None
    found = daemon.outbox(name, states=wanted, limit=limit)
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo(_no_sends(states, every), err=True)
        return
    now = datetime.now(UTC)
    columns = (
        Column("KEY", lambda row: str(row["client_msg_id"])),
        Column("IDENTITY", lambda row: str(row["identity"]), 5),
        Column("TARGET", lambda row: str(row["target"])),
        Column("STATE", _state, colour=lambda row: _SEND_COLOURS.get(row["state"])),
        Column("FOR", lambda row: since(row.get("queued_at"), now), 3),
        count_column("ATTEMPTS", "attempts", 4),
        Column("WHY", lambda row: row.get("error") or "", 1),
        Column("TEXT", _words, 2),
    )
    echo_table(columns, found)


def _no_sends(states: Sequence[str], every: bool) -> str:
    if every:
        return "nothing was ever sent"
    if states:
        return f"no send is {' or '.join(states)}"
    return "no send waits, was refused or expired; --all lists the others too"


def show_send(daemon: Client, key: str, identity: str | None, *, as_json: bool) -> None:
    """Show one send with what became of it."""
    row = daemon.outbox_show(key, identity)
    if as_json:
        echo_json(row)
        return
    place = f"{row['conversation']} #{row['seq']}" if row.get("seq") is not None else None
    _echo_fields(
        {
            "key": row["client_msg_id"],
            "identity": row["identity"],
            "target": row["target"],
            "state": _state(row),
            "attempts": row["attempts"],
            "code": row.get("code"),
            "request": row.get("request_id"),
            "why": row.get("error"),
            "place": place,
            "queued": row["queued_at"],
            "changed": row["changed_at"],
            "not before": row.get("not_before"),
            "expires": row.get("expires_at"),
            "peer's backlog": row.get("peer_backlog"),
            "cause": row.get("cause"),
        }
    )
    click.echo()
    content = row["content"]
    click.echo(paragraph(content["text"]) if content.get("text") else paragraph(json.dumps(content, indent=2)))


def retry_sends(daemon: Client, keys: Sequence[str], identity: str | None, *, as_json: bool) -> None:
    """Let these leave (again)."""
    _each(keys, lambda key: daemon.outbox_retry(key, identity), "leaves again", as_json=as_json)


def drop_sends(daemon: Client, keys: Sequence[str], identity: str | None, *, yes: bool, as_json: bool) -> None:
    """Let these never leave."""
    agree(f"never send {_these(keys, 'message')}?", yes)
    _each(keys, lambda key: daemon.outbox_drop(key, identity), "is dropped; its row stays", as_json=as_json)


def letters(daemon: Client, name: str | None, *, dropped_too: bool, limit: int, as_json: bool) -> None:
    """List dead letters."""
    found = daemon.dead(name, dropped_too=dropped_too, limit=limit)
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo("no dead letters", err=True)
        return
    now = datetime.now(UTC)
    columns = (
        count_column("NUMBER", "number", 0),
        Column("IDENTITY", lambda row: str(row["identity"]), 4),
        Column("CONVERSATION", lambda row: str(row["conversation"]), 2),
        Column("PLUGIN", lambda row: str(row["plugin"])),
        Column("DIED", lambda row: f"{since(row['died_at'], now)} ago", 1),
        count_column("ATTEMPTS", "attempts", 3),
        Column("ERROR", lambda row: f"(dropped) {row['error']}" if row.get("dropped_at") else str(row["error"])),
    )
    echo_table(columns, found)


def show_letter(daemon: Client, number: int, *, as_json: bool) -> None:
    """Show one dead letter with its event and traceback."""
    row = daemon.dead_show(number)
    if as_json:
        echo_json(row)
        return
    event = row.get("event") or {}
    _echo_fields(
        {
            "number": row["number"],
            "identity": row["identity"],
            "plugin": f"{row['plugin']} {row.get('plugin_version') or ''}".strip(),
            "attempts": row["attempts"],
            "died": row["died_at"],
            "dropped": row.get("dropped_at"),
            "error": row["error"],
            "conversation": f"{row['conversation']} #{event['seq']}" if event else row["conversation"],
            "event": event.get("id") or "cannot be read any more",
            "sender": event.get("sender"),
            "received": event.get("received_at"),
        }
    )
    if event.get("text"):
        click.echo(f"\n{paragraph(event['text'])}")
    if row.get("traceback"):
        click.echo(f"\n{paragraph(row['traceback'].rstrip())}")

    if not row.get("dropped_at"):
        _echo_remedy(row)


def _echo_remedy(row: Row) -> None:
    number, plugin = row["number"], row["plugin"]
    click.echo(f"\nto have it delivered again, once the cause is mended:\n  agentd dead replay {number}")
    if row.get("held"):
        click.echo(f"{plugin} stands still in this conversation until then; to let it go on without this event:")
        click.echo(f"  agentd release {word(plugin)} {word(row['conversation'])} --as {word(row['identity'])}")
    else:
        click.echo(f"to take it off the list:\n  agentd dead drop {number}")


def replay_letters(daemon: Client, numbers: Sequence[int], *, yes: bool, as_json: bool) -> None:
    """Deliver the events of these again."""
    what = "1 event" if len(numbers) == 1 else f"{len(numbers)} events"
    agree(f"deliver {what} again? Handlers run, and may send.", yes)
    _each(numbers, daemon.dead_replay, "is off the list, and its event is delivered again", as_json=as_json)


def drop_letters(daemon: Client, numbers: Sequence[int], *, yes: bool, as_json: bool) -> None:
    """Take these off the list."""
    agree(f"drop {_these(numbers, 'dead letter')}?", yes)
    _each(numbers, daemon.dead_drop, "is dropped; it stays in the journal", as_json=as_json)


def _these(chosen: Sequence[object], noun: str) -> str:
    return f"{noun} {chosen[0]}" if len(chosen) == 1 else f"these {len(chosen)} {noun}s"


def _each(chosen: Sequence[Any], act: Callable[[Any], Row], told: str, *, as_json: bool) -> None:
    done = []
    for each in chosen:
        done.append(act(each))
        if not as_json:
            click.echo(f"{each} {told}", err=True)
    if as_json:
        echo_json(done)


def _state(row: Row) -> str:
    return f"{row['state']}: decide" if row.get("needs_decision") else str(row["state"])


def _words(row: Row) -> str:
    text = (row["content"].get("text") or "").replace("\n", " ")
    return text if len(text) <= _WORDS_MAX else f"{text[:_WORDS_MAX]}…"


def _echo_fields(fields: Mapping[str, Any]) -> None:
    told = {name: value for name, value in fields.items() if value not in (None, "")}
    width = max(map(len, told))
    for name, value in told.items():
        click.echo(f"{name:<{width}}  {printable(str(value))}")
