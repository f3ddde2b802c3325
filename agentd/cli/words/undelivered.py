"""Verbs on what did not get through: sends, dead letters, conversations that are held.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

from pathlib import Path

import click

from agentd.cli import completing
from agentd.cli.group import EXIT_FAILED, Verbs
from agentd.cli.options import as_option, environ_with, limit_option, name_argument, reads_daemon


@click.group(cls=Verbs)
def outbox() -> None:
    """Sends that wait or failed: list, show, retry, drop."""


_as_option = as_option("Whose send, if several identities have the key.")


@outbox.command("ls")
@name_argument
@click.option("--only", "states", multiple=True, metavar="STATE", help="In this state, for example refused.")
@click.option("--all", "every", is_flag=True, help="What is sent or dropped too.")
@limit_option
@reads_daemon
def outbox_ls(
    name: str | None,
    states: tuple[str, ...],
    every: bool,
    limit: int,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """List what did not get through, newest first.

    Of all identities or the one called NAME: what waits, is unknown, was refused or expired.
    """
    from agentd.cli import held, verbs

    daemon = verbs.client(config, environ_with(state))
    held.sends(daemon, name, states=states, every=every, limit=limit, as_json=as_json)


@outbox.command("show")
@click.argument("key")
@_as_option
@reads_daemon
def outbox_show(key: str, identity: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show the send with this KEY, and the platform's answer."""
    from agentd.cli import held, verbs

    held.show_send(verbs.client(config, environ_with(state)), key, identity, as_json=as_json)


@outbox.command("retry")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_as_option
@reads_daemon
def outbox_retry(
    keys: tuple[str, ...], identity: str | None, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Let these leave after all, under their old keys.

    For what was refused, expired or dropped; what waits goes by itself. Also the decision "it did not arrive" on a
    send whose outcome nobody can tell.
    """
    from agentd.cli import held, verbs

    held.retry_sends(verbs.client(config, environ_with(state)), keys, identity, as_json=as_json)


@outbox.command("drop")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_as_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads_daemon
def outbox_drop(
    keys: tuple[str, ...], identity: str | None, yes: bool, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Never send these; their rows stay and say so.

    Also the decision "it did arrive" on a send whose outcome nobody can tell.
    """
    from agentd.cli import held, verbs

    held.drop_sends(verbs.client(config, environ_with(state)), keys, identity, yes=yes, as_json=as_json)


@click.command()
@click.argument("plugin", shell_complete=completing.plugins)
@click.argument("conversation", shell_complete=completing.conversations)
@as_option("Of this identity only.")
@reads_daemon
@click.pass_context
def release(
    ctx: click.Context,
    plugin: str,
    conversation: str,
    identity: str | None,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Let PLUGIN go on in a CONVERSATION that it holds."""
    from agentd.cli import verbs

    daemon = verbs.client(config, environ_with(state))
    ctx.exit(0 if verbs.release(daemon, plugin, conversation, identity=identity, as_json=as_json) else EXIT_FAILED)


@click.group(cls=Verbs)
def dead() -> None:
    """What plugins could not handle: list, show, replay, drop."""


@dead.command("ls")
@name_argument
@click.option("--all", "dropped_too", is_flag=True, help="Dropped ones too.")
@limit_option
@reads_daemon
def dead_ls(
    name: str | None, dropped_too: bool, limit: int, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """List dead letters, newest first.

    Of all identities or the one called NAME.
    """
    from agentd.cli import held, verbs

    held.letters(verbs.client(config, environ_with(state)), name, dropped_too=dropped_too, limit=limit, as_json=as_json)


@dead.command("show")
@click.argument("number", type=click.IntRange(min=1))
@reads_daemon
def dead_show(number: int, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show a dead letter with its event and traceback."""
    from agentd.cli import held, verbs

    held.show_letter(verbs.client(config, environ_with(state)), number, as_json=as_json)


@dead.command("replay")
@click.argument("numbers", metavar="NUMBER...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads_daemon
def dead_replay(numbers: tuple[int, ...], yes: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Deliver the events of these again.

    Handlers run, and may send. A conversation that is held behind the event begins with it anew; in others it comes by
    itself, marked late, and what its handlers sent before they gave up does not stand for what they send now.
    """
    from agentd.cli import held, verbs

    held.replay_letters(verbs.client(config, environ_with(state)), numbers, yes=yes, as_json=as_json)


@dead.command("drop")
@click.argument("numbers", metavar="NUMBER...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@reads_daemon
def dead_drop(numbers: tuple[int, ...], yes: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Take these off the list; they stay in the journal."""
    from agentd.cli import held, verbs

    held.drop_letters(verbs.client(config, environ_with(state)), numbers, yes=yes, as_json=as_json)
