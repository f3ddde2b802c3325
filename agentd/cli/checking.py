"""`agentd check`: whether a daemon could start with this configuration, its keys and its plugins.

Always true: nothing of a plugin is set up or called, though its module runs, as importing it means; what that prints
goes to stderr. As root no module runs that others may write. With `as_json`, stdout holds JSON and nothing else.
Not here: the machine and the way to the platform (`agentd doctor`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from agentd.cli.printing import echo_json
from agentd.config import (
    PluginSettings,
    Settings,
    find_configuration,
    is_path,
    load,
    looking_at_the_service,
    used_plugins,
)
from agentd.errors import AgentdError, ConfigError
from agentd.host import lifecycle


def check(config: Path | None, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Load the configuration and the plugins, and sum it up. Raises ConfigError with all problems."""
    file = config or find_configuration(environ)
    try:
        settings = load(config, looking_at_the_service(environ))
        _load_plugins(settings, file.parent if file else Path())
    except ConfigError as error:
        if as_json:
            echo_json({"ok": False, "file": file and str(file), "problems": list(error.problems)})
        raise
    if as_json:
        echo_json({"ok": True, "file": file and str(file), **_summary(settings)})
        return
    click.echo(f"ok: {file}" if file else "ok: no configuration file")
    click.echo(f"state: {settings.agentd.state}")
    if settings.embedded:
        click.echo("identities: none; `agentd run` starts its own hub and an agent that echoes")
    for name, identity in settings.identity.items():
        plugins = ", ".join(identity.plugins) or "none"
        click.echo(f"identity {name}: {identity.platform} at {identity.url}, plugins: {plugins}")
    for name in _unused(settings):
        click.echo(f"note: no identity lists plugin {name}", err=True)


def _load_plugins(settings: Settings, base: Path) -> None:
    """Import the plugins that are used, and check them against their settings. Nothing of them is set up or called."""
    problems: list[str] = []
    for name in sorted(used_plugins(settings)):
        # Their secrets were read with the configuration, and nothing here asks for one.
        wanted = msgspec.structs.replace(settings.plugin[name], secrets={})
        if _is_somebody_elses(wanted):
            click.echo(f"note: plugin {name} was not loaded, since others than root may write {wanted.use}", err=True)
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is no part of the answer
                lifecycle.load(name, wanted, base, _nothing_stored).forget()
        except AgentdError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError(problems)


def _is_somebody_elses(plugin: PluginSettings) -> bool:
    """Whether root would run what another user wrote. The daemon runs it as its own user, which may do less."""
    if os.geteuid() != 0 or not is_path(plugin.use):
        return False
    path = Path(plugin.use)
    files = [path, *path.rglob("*.py")] if path.is_dir() else [path]
    return any(each.st_uid != 0 or each.st_mode & 0o022 for each in (file.stat() for file in files))


async def _nothing_stored(plugin: str, conversation: int, key: str) -> bytes | None:
    return None


def _summary(settings: Settings) -> dict[str, Any]:
    return {
        "state": settings.agentd.state,
        "identities": {
            name: {"platform": identity.platform, "url": identity.url, "plugins": list(identity.plugins)}
            for name, identity in settings.identity.items()
        },
        "plugins": {name: plugin.use for name, plugin in settings.plugin.items()},
        "unused_plugins": _unused(settings),
    }


def _unused(settings: Settings) -> list[str]:
    used = {name for identity in settings.identity.values() for name in identity.plugins}
    return [name for name in settings.plugin if name not in used]
