"""Verbs that say what handlers should do: keep out of a conversation, go on in it, handle what is recorded again.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli import completing
from agentd.cli.options import as_option, environ_with, reads_daemon
from agentd.cli.times import given_moment, given_span

_as_option = as_option("Of this identity, if several are in it.")


@click.command()
@click.argument("conversation", shell_complete=completing.conversations)
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
@click.argument("conversation", shell_complete=completing.conversations)
@_as_option
@reads_daemon
def resume(conversation: str, identity: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Let handlers run again in a CONVERSATION that is paused.

    By whatever it was paused: a command, a person who spoke as the identity, the guard against loops, stale mail.
    """
    from agentd.cli import pausing, verbs

    pausing.resume(verbs.client(config, environ_with(state)), conversation, identity, as_json=as_json)


def _beginning(ctx: click.Context, parameter: click.Parameter, given: str | None) -> int | str | None:
    if given is not None and given.isdecimal() and len(given) <= 15:
        return int(given)
    return given_moment(ctx, parameter, given)


@click.command()
@click.option(
    "--plugin", metavar="NAME", required=True, shell_complete=completing.plugins, help="Which plugin handles it again."
)
@as_option("For this identity only, of those that it serves.")
@click.option(
    "--conversation",
    metavar="ID",
    shell_complete=completing.conversations,
    help="In this conversation only: an id, or a peer's @handle.",
)
@click.option(
    "--from",
    "beginning",
    metavar="SEQ|TIME",
    callback=_beginning,
    help="From this seq of the conversation on; or received from then on: a date and time in UTC, or 2h.",
)
@click.option("--dry-run", is_flag=True, help="Show what the handlers would do.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads_daemon
def replay(
    plugin: str,
    identity: str | None,
    conversation: str | None,
    beginning: int | str | None,
    dry_run: bool,
    yes: bool,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Let a plugin handle again what is recorded.

    In all its conversations or in one, from the beginning of what is recorded if nothing else is said. Handlers run as
    if for the first time, except that what the plugin stored is there; what they send is sent again.

    With --dry-run nothing is sent or stored; only what handlers do without their context happens: a request of their
    own, a file.
    """
    from agentd.cli import replaying, verbs

    if isinstance(beginning, int) and conversation is None:
        raise click.UsageError(f"--from {beginning} is a seq, which is a place in one conversation; add --conversation")
    chosen = replaying.Chosen(
        plugin=plugin,
        identity=identity,
        conversation=conversation,
        from_seq=beginning if isinstance(beginning, int) else None,
        since=beginning if isinstance(beginning, str) else None,
    )
    daemon = verbs.client(config, environ_with(state))
    if dry_run:
        replaying.rehearse(daemon, chosen, as_json=as_json)
    else:
        replaying.replay(daemon, chosen, yes=yes, as_json=as_json)
