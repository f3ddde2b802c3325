"""Checks of this machine: versions, state folder, journal, disk, descriptors, the daemon that runs.

Always true: nothing is locked or changed; a daemon that runs is asked as any client asks it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from agentd import __version__
from agentd.config import Settings
from agentd.control.address import find_socket
from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.doctor.finding import FAIL, OK, WARN, Finding
from agentd.errors import JournalUnusable
from agentd.journal.sqlite import copies, lock, marks, opening

JOURNAL_NAME = "journal.db"

_SYNCS = 48
_SYNC_BYTES = 4_096
_SLOW_P99_S = 0.1  # every event waits for a sync before it is acknowledged
_ROOM_FAIL_BYTES, _ROOM_WARN_BYTES = 64_000_000, 1_000_000_000
_FILES_WARN = 1_000
_DESCRIPTORS_EACH, _DESCRIPTORS_BASE = 2, 128  # a socket per identity and one to spare; journal, control, plugins
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*([^;]*)")
_BOUND = re.compile(r"(>=|<)\s*([0-9.]+)")


class Running(NamedTuple):
    """The daemon that answers at the control socket."""

    pid: int
    version: str
    state_dir: str


def versions() -> list[Finding]:
    """Python, SQLite, and every library in the version that was asked for."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding(OK, "version", "", f"agentd {__version__}, Python {python}, SQLite {opening.LIBRARY}")]
    if _numbers(opening.LIBRARY) < _numbers(opening.LIBRARY_MIN):
        told = f"older than {opening.LIBRARY_MIN}"
        findings.append(Finding(FAIL, "version", "SQLite", told, "use a Python that was built with a newer one"))
    needed = [each for each in metadata.requires("agentd") or () if "extra ==" not in each]
    problems = ((each, _requirement_problem(each)) for each in needed)
    broken = (Finding(FAIL, "version", *problem, f"pip install '{each}'") for each, problem in problems if problem)
    return [*findings, *broken]


def _requirement_problem(requirement: str) -> tuple[str, str] | None:
    found = _REQUIREMENT.match(requirement)
    assert found is not None, requirement
    name, bounds = found[1], _BOUND.findall(found[2])
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, "is not installed"
    fits = all((_numbers(installed) >= _numbers(bound)) == (sign == ">=") for sign, bound in bounds)
    return None if fits else (name, f"{installed} is installed, {found[2].strip()} is needed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def daemon(config: Path | None, environ: Mapping[str, str]) -> tuple[Running | None, list[Finding]]:
    """Whether a daemon runs here, and what it says about its identities."""
    path = find_socket(config, environ)
    try:
        status = Client(path).status()
    except UnreachableError as error:
        if not _is_there(path):
            return None, [Finding(OK, "daemon", "", "none runs")]
        return None, [Finding(WARN, "daemon", str(path), str(error), "see its log; restart it")]
    except ControlError as error:
        return None, [Finding(FAIL, "daemon", str(path), error.message, error.remedy)]
    running = Running(status["pid"], status["version"], status["state_dir"])
    told = f"agentd {running.version}, pid {running.pid}"
    findings = [Finding(OK, "daemon", "", told)]
    if running.version != __version__:
        remedy = "restart it, so that it runs what is installed"
        findings = [Finding(WARN, "daemon", "", f"{told}; this command is {__version__}", remedy)]
    for each in status["identities"]:
        state = OK if each["state"] == "live" else FAIL if each["state"] in ("parked", "deaf") else WARN
        told = f"{each['state']}: {each['state_reason']}" if each.get("state_reason") else each["state"]
        findings.append(Finding(state, "state", each["name"], told, "" if state == OK else "see: agentd status"))
    return running, [*findings, *_traces(status.get("tracing"))]


def _traces(tracing: Mapping[str, Any] | None) -> list[Finding]:
    """How a daemon that traces gets on with its collector."""
    if tracing is None:
        return []
    told = f"{tracing['endpoint']}: {tracing['delivered']} spans delivered, {tracing['lost']} lost"
    if tracing["failing_s"] is not None:
        remedy = "start the collector, or mend [agentd.tracing] endpoint and headers; mail is not affected"
        return [Finding(WARN, "traces", "", f"{told}; for {tracing['failing_s']:.0f} s: {tracing['reason']}", remedy)]
    if tracing["lost"]:
        return [Finding(WARN, "traces", "", told, "trace fewer events (sample_ratio), or raise queue_max")]
    return [Finding(OK, "traces", "", told)]


def state_folder(state: Path) -> list[Finding]:
    """Whose the state folder is, and who may look into it."""
    try:
        status = state.stat()
    except FileNotFoundError:
        return [_unborn(state)]
    except OSError as error:
        remedy = "run this as the user of the daemon, or as root"
        return [Finding(FAIL, "state folder", str(state), f"cannot be looked at ({error.strerror})", remedy)]
    if not stat.S_ISDIR(status.st_mode):
        return [Finding(FAIL, "state folder", str(state), "is not a folder", "name another one")]
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        remedy = f"run agentd as that user, or: chown -R {os.geteuid()} {shlex.quote(str(state))}"
        return [Finding(FAIL, "state folder", str(state), f"belongs to user {status.st_uid}", remedy)]
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        remedy = f"chmod 700 {shlex.quote(str(state))}"
        return [Finding(WARN, "state folder", str(state), f"is open to others (mode {mode:04o})", remedy)]
    return [Finding(OK, "state folder", str(state), f"of user {status.st_uid}, mode {mode:04o}")]


def _unborn(state: Path) -> Finding:
    parent = _nearest(state)
    if os.access(parent, os.W_OK | os.X_OK):
        return Finding(OK, "state folder", str(state), "is not there yet; the first start makes it")
    remedy = "make it for the user of the daemon, or name another one"
    return Finding(FAIL, "state folder", str(state), f"is not there, and {parent} cannot be written", remedy)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first of those above it that can be seen to be there."""
    for each in (folder, *folder.parents):
        with contextlib.suppress(OSError):  # within a folder that this user may not enter
            if each.is_dir():
                return each
    return Path("/")


def _is_there(path: Path) -> bool:
    """Whether this user can see it to be there. Of a folder that he may not enter `state_folder` tells."""
    try:
        return path.exists()
    except OSError:
        return False


def journal(state: Path, running: Running | None) -> list[Finding]:
    """Whether it can be read by this version, and who holds it."""
    path = state / JOURNAL_NAME
    if not _is_there(path):
        return []
    try:
        found = copies.standing(path)
    except JournalUnusable as error:
        return [Finding(FAIL, "journal", str(path), str(error), "restore a backup: agentd restore FILE")]
    size = f"{path.stat().st_size / 1_000_000:.1f} MB, version {found.version}"
    if not found.readable:
        return [Finding(FAIL, "journal", str(path), size, "see: agentd upgrade-check")]
    upgrade = f"; the next start upgrades it to {found.known}" if found.steps else ""
    findings = [Finding(OK, "journal", str(path), size + upgrade)]
    holder = lock.holder(path)
    if holder is not None and running is None:
        told = f"is held by pid {holder.pid} on {holder.host} since {holder.since}, which does not answer"
        findings.append(Finding(FAIL, "journal", str(path), told, f"see its log, then end it: kill {holder.pid}"))
    return findings


def known_handles(state: Path) -> dict[str, str]:
    """Identity to the handle whose mail the journal holds."""
    path = state / JOURNAL_NAME
    if not _is_there(path):
        return {}
    try:
        with copies.reading(path) as connection:
            return marks.handles(connection)
    except JournalUnusable:
        return {}


def disk(state: Path) -> list[Finding]:
    """How long a sync takes, and how much room there is."""
    folder = _nearest(state)
    return [_speed(folder), *_room(folder)]


def _speed(folder: Path) -> Finding:
    try:
        p50_s, p99_s = _sync_times(folder)
    except OSError as error:
        remedy = "run this as the user of the daemon, or as root"
        return Finding(WARN, "disk speed", str(folder), f"cannot be measured ({error.strerror})", remedy)
    told = f"a sync takes {p50_s * 1000:.1f} ms (p50), {p99_s * 1000:.1f} ms (p99)"
    if p99_s > _SLOW_P99_S:
        remedy = "every event waits for one: put the state folder on a local SSD"
        return Finding(WARN, "disk speed", str(folder), told, remedy)
    return Finding(OK, "disk speed", str(folder), told)


def _sync_times(folder: Path) -> tuple[float, float]:
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(file.fileno(), bytes(_SYNC_BYTES))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began)
    taken.sort()
    return taken[len(taken) // 2], taken[len(taken) * 99 // 100]


def _room(folder: Path) -> list[Finding]:
    free = shutil.disk_usage(folder).free
    told = f"{free / 1_000_000_000:.1f} GB free"
    remedy = "make room, or let the journal go on less: [agentd.retention]"
    state = FAIL if free < _ROOM_FAIL_BYTES else WARN if free < _ROOM_WARN_BYTES else OK
    findings = [Finding(state, "disk room", str(folder), told, "" if state == OK else remedy)]
    files = os.statvfs(folder)
    if files.f_files and files.f_favail < _FILES_WARN:
        told = f"room for {files.f_favail} more files"
        findings.append(Finding(WARN, "disk room", str(folder), told, "remove files that nobody needs"))
    return findings


def descriptors(settings: Settings, running: Running | None) -> list[Finding]:
    """Whether the limit of open files fits the number of identities."""
    hosts = len({identity.url for identity in settings.identity.values()})
    count = len(settings.identity)
    requests = min(count, settings.agentd.rest.connections_per_host_max) * hosts
    need = _DESCRIPTORS_BASE + _DESCRIPTORS_EACH * count + requests
    limit, whose = _limit(running)
    told = f"{whose} may open {limit} files; {count} identities may need {need}"
    if limit < need:
        remedy = f"LimitNOFILE={max(65_536, need)} in the unit, or ulimit -n {need}"
        return [Finding(FAIL, "descriptors", "", told, remedy)]
    return [Finding(OK, "descriptors", "", told)]


def _limit(running: Running | None) -> tuple[int, str]:
    if running is not None:
        try:
            return resource.prlimit(running.pid, resource.RLIMIT_NOFILE)[0], "the daemon"
        except OSError:
            pass  # another user's
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0], "a daemon started here"
