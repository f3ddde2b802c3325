"""Notices that the files of plugins have changed, and when they have come to rest.

Files are told apart by size and time of change. An editor writes more than once, and so does a checkout: only what has
not changed for a while is worth loading.

Always true: a state of the files that was tried once is not reported again.
Not here: reading the clock and waiting (callers pass `now`), loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agentd.errors import PluginLoadError
from agentd.host.discovery import FoundFile, find

Snapshot = Mapping[str, tuple[int, int]]
"""By path: time of change in nanoseconds, and size. A file that is not there has no entry."""


def snapshot(use: str, base: Path) -> Snapshot:
    """The files of a plugin as they are; empty for an installed one, and where there is nothing. See `find`."""
    try:
        found = find(use, base)
    except PluginLoadError:
        return {}
    taken = {}
    for file in found.files if isinstance(found, FoundFile) else ():
        try:
            status = file.stat()
        except OSError:  # it went between being listed and being looked at
            continue
        taken[str(file)] = (status.st_mtime_ns, status.st_size)
    return taken


class Watch:
    """What was seen last of each plugin, and since when. quiet_s: how long files must not have changed."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._seen: dict[str, tuple[Snapshot, float]] = {}

    def settled(self, seen: Mapping[str, Snapshot], tried: Mapping[str, Snapshot], now: float) -> list[str]:
        """The plugins whose files are not those that were tried last, and rest. Times rise from call to call."""
        found = []
        for name, files in seen.items():
            if name not in self._seen or self._seen[name][0] != files:
                self._seen[name] = files, now
            if files != tried.get(name, files) and now - self._seen[name][1] >= self._quiet_s:
                found.append(name)
        return found
