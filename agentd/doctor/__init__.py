"""`agentd doctor`: is there anything on this machine or on the way to the platform that will hurt?

    finding.py  what a check says: ok, warn or fail, with the remedy
    machine.py  versions, state folder, journal, disk, descriptors, the daemon that runs
    network.py  names, connections, TLS, clock, and each identity's key, socket and sync

Always true: it works whether a daemon runs or not, and disturbs none: it holds no lock, acknowledges nothing, and
writes one small file, which has no name, into the state folder to measure the disk. No finding holds a key.
Not here: how findings look (cli).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from agentd.config import Settings, find_configuration, find_state, load, looking_at_the_service
from agentd.doctor import machine, network
from agentd.doctor.finding import FAIL, OK, WARN, Finding, of_problem
from agentd.errors import ConfigError

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine"]


def examine(config: Path | None, environ: Mapping[str, str]) -> list[Finding]:
    """Run every check. What depends on a configuration that is broken is left out, and the configuration is told."""
    environ = looking_at_the_service(environ)
    file = config or find_configuration(environ)
    settings, findings = _configuration(file, config, environ)
    state = Path(settings.agentd.state) if settings else find_state(config, environ)
    findings += machine.versions()
    running, found = machine.daemon(config, environ)
    findings += found
    if running is not None and not environ.get("AGENTD_STATE"):
        state = Path(running.state_dir)  # under systemd it is not where this user's would be
    findings += machine.state_folder(state)
    findings += machine.journal(state, running)
    findings += machine.disk(state)
    if settings is not None:
        findings += machine.descriptors(settings, running)
        findings += asyncio.run(network.identities(settings, machine.known_handles(state), environ))
    return findings


def _configuration(
    file: Path | None, config: Path | None, environ: Mapping[str, str]
) -> tuple[Settings | None, list[Finding]]:
    try:
        settings = load(config, environ)
    except ConfigError as error:
        return None, [of_problem("configuration", "", problem) for problem in error.problems]
    if file is None:
        return settings, [Finding(OK, "configuration", "", "no file: agentd run brings its own hub")]
    count = len(settings.identity)
    return settings, [Finding(OK, "configuration", str(file), f"{count} {'identity' if count == 1 else 'identities'}")]
