"""Verbs that say what handlers should do: keep out of a conversation, go on in it, handle what is recorded again.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli.options import F, environ_with, reads_daemon
from agentd.cli.times import given_span


def _as_option(command: F) -> F:
    return click.option("--as", "identity", metavar="NAME", help="Of this identity, if several are in it.")(command)


@click.command()
@click.argument("conversation")
@_as_option
@click.option("--for", "for_s", metavar="SPAN", callback=given_span, help="Not for longer: 90s, 30m, 2h, 7d.")
@reads_daemon
def pause(
    conversation: str,
    identity: str | None,
    for_s: float | None,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Let no handler run in a CONVERSATION; its mail is kept.

    CONVERSATION is an id, or the peer's @handle where something was sent to it lately. Turns under way end as they end.
    """
    from agentd.cli import pausing, verbs

    daemon = verbs.client(config, environ_with(state))
    pausing.pause(daemon, conversation, identity, for_s=for_s, as_json=as_json)


@click.command()
@click.argument("conversation")
@_as_option
@reads_daemon
def resume(conversation: str, identity: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Let handlers run again in a CONVERSATION that is paused.

    By whatever it was paused: a command, a person who spoke as the identity, the guard against loops, stale mail.
    """
    from agentd.cli import pausing, verbs

    pausing.resume(verbs.client(config, environ_with(state)), conversation, identity, as_json=as_json)
