"""Verbs that start something, check it, or write files to begin with.

Always true: a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from agentd.cli.options import config_option, environ_with, json_option, state_option

_HUB_PORT = 8787
_DEMO_MESSAGES, _DEMO_IDENTITIES, _DEMO_CONVERSATIONS, _DEMO_KILLS = 5_000, 3, 40, 5


@click.command()
@config_option
@state_option
@click.option("--take-over", is_flag=True, help="Take over from the daemon that runs, if one does, while mail flows.")
@click.pass_context
def run(ctx: click.Context, config: Path | None, state: Path | None, take_over: bool) -> None:
    """Run the daemon in the foreground.

    Without a configuration it brings its own hub and an agent that echoes.
    """
    from agentd import daemon
    from agentd.config import find_configuration, load

    environ = environ_with(state)
    settings, path = load(config, environ), config or find_configuration(environ)
    ctx.exit(daemon.run(settings, config_path=path, take_over=take_over))


def _pairs(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    if wrong := next((each for each in given if not all(each.partition("="))), None):
        raise click.BadParameter(f"{wrong!r} is not NAME=VALUE")
    return dict(each.split("=", 1) for each in given)


@click.command()
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


@click.command()
@click.option("--messages", type=click.IntRange(min=1), default=_DEMO_MESSAGES, show_default=True)
@click.option("--identities", type=click.IntRange(min=1), default=_DEMO_IDENTITIES, show_default=True)
@click.option("--conversations", type=click.IntRange(min=1), default=_DEMO_CONVERSATIONS, show_default=True)
@click.option("--kills", type=click.IntRange(min=0), default=_DEMO_KILLS, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
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
    """Write a plugin called NAME and a test of it that passes, into a folder of that name."""
    from agentd.cli.new import new_plugin, next_steps

    for file in new_plugin(name, inside):
        click.echo(file)
    click.echo(f"\n{next_steps(name, inside)}", nl=False)


@click.command()
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Check the configuration and the keys, and tell every problem."""
    from agentd.cli import verbs

    verbs.check(config, os.environ, as_json=as_json)
