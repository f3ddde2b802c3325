"""What `agentd hub` does: a development server in the foreground, with faults by chance.

Always true: one line on stdout names the address once it can be dialled; SIGINT and SIGTERM stop it properly.
Not here: the server (agentd.hub).
"""

from __future__ import annotations

import asyncio
import difflib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import msgspec

from agentd import logs
from agentd.control.systemd import ServiceManager
from agentd.hub.faults import FaultPlan
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings


def serve(settings: HubSettings, plan: FaultPlan) -> None:
    """Serve until a signal comes. Raises click's errors if the address or the store cannot be had."""
    if settings.database != ":memory:" and not Path(settings.database).absolute().parent.is_dir():
        raise click.UsageError(f"the folder of --store {settings.database} does not exist; make it first")
    logs.configure("info")
    try:
        asyncio.run(_serve(settings, plan, lambda url: click.echo(f"hub at {url}")))
    except OSError as error:
        raise click.ClickException(
            f"the hub cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "take another --port, or another --host"
        ) from None


async def _serve(settings: HubSettings, plan: FaultPlan, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    manager = ServiceManager()
    async with Hub(settings) as hub:
        hub.faults.replace(plan)
        ready(hub.url)
        manager.ready()
        manager.status(f"listens at {hub.url}")
        await stop.wait()
        manager.stopping()


def fault_plan(seed: int, given: Mapping[str, str]) -> FaultPlan:
    """The plan that NAME=VALUE pairs describe. Raises click's usage error, which names what was meant or is known."""
    known = [name for name in FaultPlan.__struct_fields__ if name != "seed"]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            told = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise click.UsageError(f"there is no fault {name!r}; {told}")
    try:
        plan = msgspec.convert({"seed": seed, **given}, FaultPlan, strict=False)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"a fault's value is a number: {error}") from None
    _check_chances(plan)
    return plan


def _check_chances(plan: FaultPlan) -> None:
    for name in FaultPlan.__struct_fields__:
        value = getattr(plan, name)
        if name != "seed" and not 0 <= value <= (float("inf") if name.endswith("_s") else 1):
            raise click.UsageError(f"{name}={value:g} is no chance; give a number from 0 to 1")
