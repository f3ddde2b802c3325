"""The `agentd` command: words on a command line become one call.

Exit codes: 0 fine, 1 failed, 2 usage, 69 no daemon to be reached, 78 configuration; 130 interrupted.

Always true: a verb imports what it needs when it runs, so that `--help` and the verbs that ask a running daemon start
at once. Answers go to stdout, everything about them to stderr. Colour is for terminals, and NO_COLOR turns it off.
Not here: what the verbs do (verbs.py, serving.py and the modules that they call), how tables look (tables.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agentd import __version__
from agentd.control.refusal import UnreachableError
from agentd.errors import AgentdError, ConfigError

EXIT_FAILED = 1
EXIT_UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h
EXIT_CONFIG = 78  # EX_CONFIG; a supervisor need not try again
EXIT_INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])

_HUB_PORT = 8787
_SEND_WAIT_S = 10.0
_DEMO_MESSAGES, _DEMO_IDENTITIES, _DEMO_CONVERSATIONS, _DEMO_KILLS = 5_000, 3, 40, 5


class _Verbs(click.Group):
    """Turns the errors of agentd into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            ctx.exit(EXIT_CONFIG)
        except UnreachableError as error:
            _fail(ctx, error, EXIT_UNREACHABLE)
        except AgentdError as error:
            _fail(ctx, error, EXIT_FAILED)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met, not by the alphabet."""
        return list(self.commands)


def _fail(ctx: click.Context, error: AgentdError, code: int) -> None:
    from agentd.logs import printable

    click.echo(f"agentd: {printable(str(error))}", err=True)  # a platform's words may be in it
    ctx.exit(code)


def _config_option(command: F) -> F:
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration file. Else AGENTD_CONFIG, ./agentd.toml, /etc/agentd/agentd.toml.",
    )(command)


def _state_option(command: F) -> F:
    return click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="State folder. Else AGENTD_STATE, the configuration's, ./state.",
    )(command)


def _reads_daemon(command: F) -> F:
    return _json_option(_config_option(_state_option(command)))


def _json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")(command)


def _environ(state: Path | None) -> dict[str, str]:
    """The process's environment with the state folder of the command line, which wins."""
    return {**os.environ, **({"AGENTD_STATE": str(state)} if state else {})}


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="agentd")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A daemon between agent platforms and the code of your agents: nothing lost, in order, answered once."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


@cli.command()
@_config_option
@_state_option
@click.pass_context
def run(ctx: click.Context, config: Path | None, state: Path | None) -> None:
    """Run the daemon in the foreground.

    Without a configuration it brings its own hub and an agent that echoes.
    """
    from agentd import daemon
    from agentd.config import find_configuration, load

    environ = _environ(state)
    ctx.exit(daemon.run(load(config, environ), config_path=config or find_configuration(environ)))


@cli.command()
@_config_option
@_json_option
def check(config: Path | None, as_json: bool) -> None:
    """Check configuration and keys; tell every problem at once."""
    from agentd.cli import verbs

    verbs.check(config, os.environ, as_json=as_json)


@cli.command()
@click.argument("name", required=False)
@_reads_daemon
def status(name: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show the daemon and its identities, or the one called NAME."""
    from agentd.cli import verbs

    verbs.status(verbs.client(config, _environ(state)), name, as_json=as_json)


@cli.command()
@click.option("--open", "opened", is_flag=True, help="Start a browser with it.")
@_reads_daemon
def dashboard(opened: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Print a link that opens the page, once."""
    from agentd.cli import invitation, verbs

    invitation.show(verbs.client(config, _environ(state)), opened=opened, as_json=as_json)


@cli.command()
@click.argument("target")
@click.argument("text")
@click.option("--as", "identity", metavar="NAME", help="The identity that speaks; not needed if there is only one.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    metavar="S",
    default=_SEND_WAIT_S,
    show_default=True,
    help="Seconds to wait for a reply.",
)
@click.option("--no-wait", is_flag=True, help="Return as soon as the message is on disk.")
@click.option("--key", metavar="ID", help="Its client_msg_id: the same key is never sent twice.")
@_reads_daemon
@click.pass_context
def send(
    ctx: click.Context,
    target: str,
    text: str,
    identity: str | None,
    wait_s: float,
    no_wait: bool,
    key: str | None,
    config: Path | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Say TEXT to TARGET and show the reply.

    TARGET is an @handle or a conversation id. The TEXT "-" stands for what comes on stdin.
    """
    from agentd.cli import verbs

    accepted = verbs.send(
        verbs.client(config, _environ(state)),
        target,
        text,
        identity=identity,
        wait_s=0.0 if no_wait else wait_s,
        key=key,
        as_json=as_json,
    )
    ctx.exit(0 if accepted else EXIT_FAILED)


@cli.command()
@click.argument("name", required=False)
@click.option("--since", type=click.IntRange(min=0), metavar="POSITION", help="Start behind this journal position.")
@_reads_daemon
def tail(name: str | None, since: int | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Follow the journal, of all identities or the one called NAME."""
    from agentd.cli import verbs

    verbs.tail(verbs.client(config, _environ(state)), name, since, as_json=as_json)


@cli.command()
@click.argument("name", required=False)
@click.option("--all", "closed_too", is_flag=True, help="Closed ones too, with what became of them.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most this many.")
@_reads_daemon
def gaps(
    name: str | None, closed_too: bool, limit: int, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """List the gaps that are open, newest first."""
    from agentd.cli import verbs

    verbs.gaps(verbs.client(config, _environ(state)), name, closed_too=closed_too, limit=limit, as_json=as_json)


@cli.group(cls=_Verbs)
def outbox() -> None:
    """Sends that wait, were refused or expired: list, retry, drop."""


def _as_option(command: F) -> F:
    return click.option("--as", "identity", metavar="NAME", help="Whose send, if several identities have the key.")(
        command
    )


@outbox.command("ls")
@click.argument("name", required=False)
@click.option("--only", "states", multiple=True, metavar="STATE", help="In this state, for example refused.")
@click.option("--all", "every", is_flag=True, help="What is sent or dropped too.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most this many.")
@_reads_daemon
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

    daemon = verbs.client(config, _environ(state))
    held.sends(daemon, name, states=states, every=every, limit=limit, as_json=as_json)


@outbox.command("show")
@click.argument("key")
@_as_option
@_reads_daemon
def outbox_show(key: str, identity: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show the send with this KEY, and the platform's answer."""
    from agentd.cli import held, verbs

    held.show_send(verbs.client(config, _environ(state)), key, identity, as_json=as_json)


@outbox.command("retry")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_as_option
@_reads_daemon
def outbox_retry(
    keys: tuple[str, ...], identity: str | None, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Let these leave after all, under their old keys.

    For what was refused, expired or dropped; what waits goes by itself. Also the decision "it did not arrive" on a
    send whose outcome nobody can tell.
    """
    from agentd.cli import held, verbs

    held.retry_sends(verbs.client(config, _environ(state)), keys, identity, as_json=as_json)


@outbox.command("drop")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_as_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@_reads_daemon
def outbox_drop(
    keys: tuple[str, ...], identity: str | None, yes: bool, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """Never send these; their rows stay and say so.

    Also the decision "it did arrive" on a send whose outcome nobody can tell.
    """
    from agentd.cli import held, verbs

    held.drop_sends(verbs.client(config, _environ(state)), keys, identity, yes=yes, as_json=as_json)


@cli.group(cls=_Verbs)
def dead() -> None:
    """Events that a plugin could not handle: list, show, drop."""


@dead.command("ls")
@click.argument("name", required=False)
@click.option("--all", "dropped_too", is_flag=True, help="Dropped ones too.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most this many.")
@_reads_daemon
def dead_ls(
    name: str | None, dropped_too: bool, limit: int, config: Path | None, state: Path | None, as_json: bool
) -> None:
    """List dead letters, newest first.

    Of all identities or the one called NAME.
    """
    from agentd.cli import held, verbs

    held.letters(verbs.client(config, _environ(state)), name, dropped_too=dropped_too, limit=limit, as_json=as_json)


@dead.command("show")
@click.argument("number", type=click.IntRange(min=1))
@_reads_daemon
def dead_show(number: int, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show a dead letter with its event and traceback."""
    from agentd.cli import held, verbs

    held.show_letter(verbs.client(config, _environ(state)), number, as_json=as_json)


@dead.command("drop")
@click.argument("numbers", metavar="NUMBER...", nargs=-1, required=True, type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@_reads_daemon
def dead_drop(numbers: tuple[int, ...], yes: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Take these off the list; they stay in the journal."""
    from agentd.cli import held, verbs

    held.drop_letters(verbs.client(config, _environ(state)), numbers, yes=yes, as_json=as_json)


@cli.command()
@click.argument("plugin")
@click.argument("conversation")
@click.option("--as", "identity", metavar="NAME", help="Of this identity only.")
@_reads_daemon
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

    daemon = verbs.client(config, _environ(state))
    ctx.exit(0 if verbs.release(daemon, plugin, conversation, identity=identity, as_json=as_json) else EXIT_FAILED)


def _pairs(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    if wrong := next((each for each in given if not all(each.partition("="))), None):
        raise click.BadParameter(f"{wrong!r} is not NAME=VALUE")
    return dict(each.split("=", 1) for each in given)


@cli.group()
def new() -> None:
    """Write files to begin with."""


def _plugin_name(ctx: click.Context, parameter: click.Parameter, given: str) -> str:
    from agentd.cli.new import name_problem

    if problem := name_problem(given):
        raise click.BadParameter(f"{given!r}: {problem}")
    return given


@new.command()
@click.argument("name", callback=_plugin_name)
@click.option(
    "--in",
    "inside",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path(),
    help="Where its folder goes; here, if not given.",
)
def plugin(name: str, inside: Path) -> None:
    """Write a plugin called NAME and a test of it that passes, into a folder of that name."""
    from agentd.cli.new import new_plugin, next_steps

    for file in new_plugin(name, inside):
        click.echo(file)
    click.echo(f"\n{next_steps(name, inside)}", nl=False)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=_HUB_PORT, show_default=True, help="0 takes a free one."
)
@click.option("--store", metavar="FILE", default=":memory:", show_default=True, help="SQLite file that keeps its mail.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the faults.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="Go wrong by chance, for example push_drop=0.01.",
)
@click.option("--dev", is_flag=True, help="Development mode: one-time codes in answers, and control over HTTP.")
def hub(host: str, port: int, store: str, seed: int, faults: dict[str, str], dev: bool) -> None:
    """Run a development server that speaks AgentChat's wire."""
    from agentd.cli import serving
    from agentd.hub.settings import HubSettings

    plan = serving.fault_plan(seed, faults)
    serving.serve(HubSettings(host=host, port=port, database=store, development=dev), plan)


@cli.command()
@click.option("--messages", type=click.IntRange(min=1), default=_DEMO_MESSAGES, show_default=True)
@click.option("--identities", type=click.IntRange(min=1), default=_DEMO_IDENTITIES, show_default=True)
@click.option("--conversations", type=click.IntRange(min=1), default=_DEMO_CONVERSATIONS, show_default=True)
@click.option("--kills", type=click.IntRange(min=0), default=_DEMO_KILLS, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@_json_option
@click.pass_context
def demo(
    ctx: click.Context, messages: int, identities: int, conversations: int, kills: int, seed: int, as_json: bool
) -> None:
    """Prove that nothing is lost.

    A hub with seeded faults and a daemon that is killed under load; in the end three ledgers must agree.
    """
    from agentd import demo as proof

    ctx.exit(
        proof.run(
            messages=messages,
            identities=identities,
            conversations=conversations,
            kills=kills,
            seed=seed,
            as_json=as_json,
        )
    )


def main() -> None:
    """Entry point of the command."""
    cli.main(prog_name="agentd")
