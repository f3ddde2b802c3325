"""Verbs that start something, check it, or write files to begin with.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from agentd.cli.options import F, config_option, environ_with, json_option, state_option

_HUB_PORT = 8787
_DEV_WAIT_S = 60.0
_DEMO_MESSAGES, _DEMO_IDENTITIES, _DEMO_CONVERSATIONS, _DEMO_KILLS = 5_000, 3, 40, 5


@click.command()
@click.option("--reload", "watch_files", is_flag=True, help="Reload plugins when their files change.")
@config_option
@state_option
@click.option("--take-over", is_flag=True, help="Take over from the daemon that runs, if one does, while mail flows.")
@click.pass_context
def run(ctx: click.Context, watch_files: bool, take_over: bool, config: Path | None, state: Path | None) -> None:
    """Run the daemon in the foreground.

    Without a configuration it brings its own hub and an agent that echoes.
    """
    from agentd import daemon
    from agentd.config import find_configuration, find_state, is_kept_for_the_service, load

    environ = environ_with(state)
    if is_kept_for_the_service(folder := find_state(config, environ)):
        told = f"{folder} is the state of agentd.service, whose user could not open what root writes there"
        raise click.ClickException(f"{told}; use: systemctl start agentd, or name another folder with --state")
    ctx.exit(
        daemon.run(
            load(config, environ),
            config_path=config or find_configuration(environ),
            reread=lambda: load(config, environ),
            watch_files=watch_files,
            take_over=take_over,
        )
    )


def _pairs(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    if wrong := next((each for each in given if not all(each.partition("="))), None):
        raise click.BadParameter(f"{wrong!r} is not NAME=VALUE")
    return dict(each.split("=", 1) for each in given)


@click.command()
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    metavar="N",
    default=_HUB_PORT,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--store", metavar="FILE", default=":memory:", show_default=True, help="SQLite file that keeps its mail.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Seed of the faults.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="Go wrong by chance, for example push_drop=0.01.",
)
@click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="HANDLE",
    help="Have this account, and its key in hub-keys/HANDLE.key.",
)
@click.option("--dev", is_flag=True, help="Development mode: one-time codes in answers, and control over HTTP.")
def hub(
    host: str, port: int, store: str, seed: int, faults: dict[str, str], agents: tuple[str, ...], dev: bool
) -> None:
    """Run a development server that speaks AgentChat's wire."""
    from agentd.cli import serving
    from agentd.hub.settings import HubSettings

    plan = serving.fault_plan(seed, faults)
    serving.serve(HubSettings(host=host, port=port, database=store, development=dev), plan, agents)


def _count_option(name: str, default: int, told: str, least: int = 1) -> Callable[[F], F]:
    kind = click.IntRange(min=least)
    return click.option(name, type=kind, metavar="N", default=default, show_default=True, help=told)


@click.command()
@_count_option("--messages", _DEMO_MESSAGES, "Messages that peers send.")
@_count_option("--identities", _DEMO_IDENTITIES, "Identities of the daemon.")
@_count_option("--conversations", _DEMO_CONVERSATIONS, "Conversations that they are in.")
@_count_option("--kills", _DEMO_KILLS, "How often the daemon is killed.", least=0)
@click.option("--seed", type=int, metavar="N", default=1, show_default=True, help="Seed of the faults.")
@json_option
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


@click.command()
@click.argument("plugin")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep its state and mail here; else they go in the end.",
)
@click.option(
    "--config-toml",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The plugin's settings, as in [plugin.NAME.config].",
)
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", callback=_pairs, help="One of them; TOML where it can be."
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3_600),
    metavar="S",
    default=_DEV_WAIT_S,
    show_default=True,
    help="Without a terminal: how long a line may take to be handled.",
)
@click.pass_context
def dev(
    ctx: click.Context,
    plugin: str,
    state: Path | None,
    config_toml: Path | None,
    pairs: dict[str, str],
    wait_s: float,
) -> None:
    """Talk to a plugin in the terminal while you write it.

    PLUGIN is a file, a folder, module:attribute or the name of an installed one. It runs in a real daemon on a platform
    that exists here only, and is reloaded when its files change. Without a terminal, each line on stdin is said when
    the one before was handled.
    """
    from agentd import dev as trying
    from agentd.dev.configured import problem_of, settings_from

    if problem := problem_of(plugin):
        raise click.UsageError(problem)
    ctx.exit(trying.run(plugin, settings_from(config_toml, pairs.items()), state=state, wait_s=wait_s))


@click.group()
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
    """Write a plugin and a test of it that passes.

    Both go into a folder called NAME, which is the plugin's name too.
    """
    from agentd.cli.new import new_plugin, next_steps

    for file in new_plugin(name, inside):
        click.echo(file)
    click.echo(f"\n{next_steps(name, inside)}", nl=False)


@click.command()
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Tell every problem of the configuration.

    The file is read with its keys, and the plugins are loaded, though not set up: their modules run.
    """
    from agentd.cli import checking

    checking.check(config, os.environ, as_json=as_json)
