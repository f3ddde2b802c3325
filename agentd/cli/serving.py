"""What `agentd hub` does: a development server in the foreground, with faults by chance.

Always true: one line on stdout names the address once it can be dialled; SIGINT and SIGTERM stop it properly.
Not here: the server (agentd.hub).
"""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from agentd import logs
from agentd.control.systemd import ServiceManager
from agentd.hub.answers import ApiError
from agentd.hub.faults import FaultPlan
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

_KEYS = Path("hub-keys")  # of its own, so that no key of a real account is ever replaced


def serve(settings: HubSettings, plan: FaultPlan, agents: Sequence[str]) -> None:
    """Serve until a signal comes. agents: handles of accounts that there shall be.

    Raises StoreUnusable, or click's errors if the address cannot be had, or an account cannot be made.
    """
    if settings.database != ":memory:" and not Path(settings.database).absolute().parent.is_dir():
        raise click.UsageError(f"the folder of --store {settings.database} does not exist; make it first")
    logs.configure("info")
    try:
        asyncio.run(_serve(settings, plan, agents, lambda url: click.echo(f"hub at {url}")))
    except OSError as error:
        raise click.ClickException(
            f"the hub cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "take another --port, or another --host"
        ) from None


async def _serve(settings: HubSettings, plan: FaultPlan, agents: Sequence[str], ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    manager = ServiceManager()
    async with Hub(settings) as hub:
        hub.faults.replace(plan)
        for handle in agents:
            click.echo(f"@{handle}: the key is in {_key_file(hub, handle)}", err=True)
        ready(hub.url)
        manager.ready()
        manager.status(f"listens at {hub.url}")
        await stop.wait()
        manager.stopping()


def _key_file(hub: Hub, handle: str) -> Path:
    """Make this account if the hub does not know it. Returns where its key is."""
    file = _KEYS / f"{handle}.key"
    known = hub.has_agent(handle)
    if known and file.exists():
        return file
    try:
        key = hub.rotate_key(handle) if known else hub.create_agent(handle)
        _KEYS.mkdir(mode=0o700, exist_ok=True)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(key)
    except ApiError as error:
        raise click.UsageError(f"--agent {handle}: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written ({error.strerror}); start in another folder") from None
    return file


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
