"""The verbs that keep handlers out of a conversation: pause and resume; and what status says about both.

Not here: parsing words (words/), what the verbs mean (the daemon).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from agentd.cli.printing import count_column, echo_json, echo_table, word
from agentd.cli.tables import Column, age, number, parsed, since, size
from agentd.control.client import Client
from agentd.logs import printable

_PAUSES_SHOWN = 20  # by a policy of holding stale mail, thousands may be paused at once


def pause(daemon: Client, conversation: str, identity: str | None, *, for_s: float | None, as_json: bool) -> None:
    """Let no handler run in a conversation."""
    row = daemon.pause(conversation, identity, for_s=for_s)
    if as_json:
        echo_json(row)
        return
    end = f"for {age(for_s)}" if for_s is not None else "until it is resumed"
    click.echo(f"{_place(row)} is paused {end}: its mail is kept, and no handler runs")
    click.echo(f"go on: agentd resume {word(row['conversation'])} --as {word(row['identity'])}", err=True)


def resume(daemon: Client, conversation: str, identity: str | None, *, as_json: bool) -> None:
    """Let handlers run again."""
    row = daemon.resume(conversation, identity)
    if as_json:
        echo_json(row)
        return
    paused = since(row.get("paused_at"), datetime.now(UTC))
    click.echo(f"{_place(row)} goes on; it was paused for {paused} ({printable(row['reason'])})")


def echo_pauses(answer: Mapping[str, Any]) -> None:
    """Which conversations are paused, as a part of the status."""
    pauses = answer.get("pauses") or []
    if not pauses:
        return
    now = datetime.now(UTC)
    click.echo()
    columns = (
        Column("PAUSED", lambda row: str(row["conversation"])),
        Column("IDENTITY", lambda row: str(row["identity"]), 2),
        Column("FOR", lambda row: since(row["paused_at"], now), 3),
        Column("UNTIL", lambda row: _until(row, now), 1),
        Column("WHY", lambda row: str(row["reason"])),
    )
    echo_table(columns, pauses[:_PAUSES_SHOWN])
    if len(pauses) > _PAUSES_SHOWN:
        click.echo(f"and {number(len(pauses) - _PAUSES_SHOWN)} more; see: agentd status --json")


def echo_plugins(answer: Mapping[str, Any]) -> None:
    """How many conversations each plugin has something to do in, as a part of the status."""
    plugins = [each for each in answer["plugins"] if "lanes" in each]
    if plugins:
        click.echo()
        columns = (
            Column("PLUGIN", lambda row: str(row["name"])),
            Column("VERSION", lambda row: row.get("version") or "-", 3),
            Column("STATE", _standing, colour=lambda row: "green" if _standing(row) == "works" else "yellow"),
            count_column("LANES", "lanes", 1),
            count_column("RUNNING", "running", 0),
            Column("HELD", lambda row: number(len(row.get("held", ()))), 0, right=True),
            count_column("TIMERS", "timers", 2),
        )
        echo_table(columns, plugins)
    if count := answer.get("undispatched"):
        events = "1 event waits" if count == 1 else f"{number(count)} events wait"
        click.echo(f"{events} in memory ({size(answer['undispatched_bytes'])})")
    if reason := answer.get("shedding"):
        click.echo(f"new messages stay with the platform: {printable(reason)}")
    if (tracing := answer.get("tracing")) and tracing["lost"]:
        click.echo(
            f"{number(tracing['lost'])} spans lost on the way to {printable(tracing['endpoint'])}: agentd doctor"
        )


def _standing(row: Mapping[str, Any]) -> str:
    return "works" if row.get("breaker", "closed") == "closed" else "out of order"


def _until(row: Mapping[str, Any], now: datetime) -> str:
    if row["until"] is None:
        return "resumed"
    return f"in {age((parsed(row['until']) - now).total_seconds())}"


def _place(row: Mapping[str, Any]) -> str:
    return f"{printable(row['conversation'])} of {row['identity']}"
