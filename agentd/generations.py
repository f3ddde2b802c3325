"""Plugins by generation: loaded, set up, put into service, replaced while they run, torn down.

Always true: a generation is in service only after it was loaded, checked and set up; until then, and if any of it
fails, the one before stays. One that was replaced is torn down when its last turn has ended, or has used up all the
time that it may take. Changes are made one at a time: whoever makes them holds `changing`.
Not here: what a generation is made of (host), what runs it (dispatcher), when there is another (reloading).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from agentd.config import Secret, Settings, used_plugins
from agentd.core.moments import iso
from agentd.dispatcher import Dispatcher
from agentd.errors import AgentdError, ConfigError
from agentd.host.api import Port
from agentd.host.isolated import Hosted, Isolated, load_hosted
from agentd.host.lifecycle import load, secrets_of
from agentd.host.state import Read
from agentd.host.threads import Threads
from agentd.host.watching import Snapshot, snapshot

log = logging.getLogger("agentd.generations")


class _Made(NamedTuple):
    """What a generation was made of."""

    files: Snapshot
    secrets: Mapping[str, Secret]


class Generations:
    """Those of one daemon. `dispatcher` is hung in before the first change; `close` in the end.

    base: the folder that relative paths start from. read: `state_get`. state_bytes: what a plugin's state has on disk.
    backlog_of, api_of: see Loaded. plugins: by name, what is in service. codes: their code with what to call it.
    tried: the files that a plugin was last loaded from, or failed to be.

    Of each generation the files and the secrets are kept that it was made of, to notice that they are others now. They
    are its own: one that was loaded and did not come into service must not pass for the one that runs.
    """

    dispatcher: Dispatcher

    def __init__(
        self,
        base: Path,
        read: Read,
        state_bytes: Callable[[str], int],
        backlog_of: Callable[[str, str], int | None],
        api_of: Callable[[str], Port | None],
    ) -> None:
        self._base = base
        self._read = read
        self._state_bytes = state_bytes
        self._backlog_of = backlog_of
        self._api_of = api_of
        self.plugins: dict[str, Hosted] = {}
        self.codes: dict[CodeType, str] = {}
        self.tried: dict[str, Snapshot] = {}
        self.changing = asyncio.Lock()
        self._made_of: dict[Hosted, _Made] = {}
        self._numbers: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._ready: list[Hosted] = []
        self._threads = Threads("agentd-loading", 1)
        self._retiring: dict[asyncio.Task[None], Hosted] = {}

    def standing(self, name: str) -> dict[str, Any]:
        """What is in service, for people. reload_error: why what lies on disk now is not, or None."""
        since = self._since.get(name)
        return {
            "generation": self._numbers.get(name),
            "loaded_at": None if since is None else iso(since),
            "reload_error": self._failures.get(name),
        }

    # --- start and end

    async def start(self, settings: Settings) -> None:
        """Load and set up plugins to begin with. Raises ConfigError with what cannot be loaded, PluginLoadError."""
        loaded = []
        problems: list[str] = []
        for name in sorted(used_plugins(settings)):
            try:
                loaded.append(await self._load(name, settings))
            except AgentdError as error:
                problems += str(error).splitlines()
        if problems:
            for plugin in loaded:
                if isinstance(plugin, Isolated):
                    await plugin.end()
            raise ConfigError(problems)
        for plugin in loaded:
            await self._set_up(plugin)
        for plugin in loaded:
            self._in_service(plugin)

    async def close(self) -> None:
        """Tear everything down, the last set up first."""
        for task, plugin in self._retiring.items():
            if plugin in self._ready:  # it waits for turns; else it is being torn down, which is let finish
                task.cancel()
        if self._retiring:
            await asyncio.wait(self._retiring)
        for plugin in reversed(self._ready):
            await plugin.teardown()
        self._threads.close()

    # --- making one

    async def prepare(self, name: str, settings: Settings) -> Hosted:
        """Another generation, loaded and set up. Put it into service, or `discard` it.

        Raises AgentdError, logged and told by `standing`: the one before stays.
        """
        try:
            plugin = await self._load(name, settings)
            try:
                await self._set_up(plugin)
            except BaseException:
                await self.discard(plugin)
                raise
        except AgentdError as error:
            if name in self.plugins:
                self._failures[name] = str(error)
                log.error("not reloaded, the generation before stays: %s", error, extra={"plugin": name})
            raise
        return plugin

    async def discard(self, plugin: Hosted) -> None:
        """A generation is not wanted after all, or any more."""
        self._ready.remove(plugin)
        self._made_of.pop(plugin)
        try:
            await plugin.teardown()
        finally:
            current = self.plugins.get(plugin.name)
            kept = dict(current.codes()) if current is not None else {}
            for code, _ in plugin.codes():
                if code not in kept:
                    self.codes.pop(code, None)

    async def _load(self, name: str, settings: Settings) -> Hosted:
        wanted, base, read = settings.plugin[name], self._base, self._read
        self.tried[name] = files = await asyncio.to_thread(snapshot, wanted.use, base)
        secrets = await asyncio.to_thread(secrets_of, name, wanted)  # their sources may be slow
        plugin: Hosted
        if wanted.isolate == "none":
            # In a thread, since importing may take long, and nothing else should wait for it, nor should a stop.
            plugin = await self._threads.submit(load, name, wanted, base, read, secrets)
        else:
            plugin = await load_hosted(name, wanted, base, read, hidden=_hidden(settings, name))
        self._made_of[plugin] = _Made(files, secrets)
        return plugin

    async def _set_up(self, plugin: Hosted) -> None:
        plugin.backlog_of = self._backlog_of
        plugin.api_of = self._api_of
        plugin.state.stored_bytes = partial(self._state_bytes, plugin.name)
        self._ready.append(plugin)
        self.codes.update(plugin.codes())
        await plugin.setup()

    # --- service

    async def add(self, plugin: Hosted) -> None:
        """A prepared generation of a plugin that was not in service."""
        await self.dispatcher.add(plugin)
        self._in_service(plugin)

    async def swap(self, plugin: Hosted) -> None:
        """A prepared generation takes over from the one before, which ends when its turns have."""
        before = self.dispatcher.swap(plugin)
        self._in_service(plugin)
        await self.dispatcher.restore_timers(plugin.name)
        self._retire(before)

    def remove(self, name: str) -> None:
        """A plugin that serves nobody any more ends when its turns have."""
        for table in (self.plugins, self._since, self._failures, self.tried):
            table.pop(name, None)
        self._retire(self.dispatcher.remove(name))

    async def reload(self, name: str, settings: Settings) -> bool:
        """Let what lies on disk now take over. False if it cannot; see `prepare`."""
        try:
            plugin = await self.prepare(name, settings)
        except AgentdError:
            return False
        await self.swap(plugin)
        return True

    async def changed_files(self) -> list[str]:
        """The plugins in service whose files are not those that they were loaded from."""
        seen = await self.seen()
        return [name for name, files in seen.items() if files != self._made_of[self.plugins[name]].files]

    async def changed_secrets(self, settings: Settings) -> list[str]:
        """The plugins in service whose secrets are not those that they were loaded with. Raises ConfigError."""
        wanted = {name: settings.plugin[name] for name in self.plugins if name in settings.plugin}
        now = await asyncio.to_thread(lambda: {name: secrets_of(name, plugin) for name, plugin in wanted.items()})
        return [name for name, secrets in now.items() if secrets != self._made_of[self.plugins[name]].secrets]

    async def seen(self) -> dict[str, Snapshot]:
        """The files of the plugins in service that came from a path, as they are now."""
        uses = {name: each.settings.use for name, each in self.plugins.items() if self._made_of[each].files}
        return await asyncio.to_thread(lambda: {name: snapshot(use, self._base) for name, use in uses.items()})

    def _in_service(self, plugin: Hosted) -> None:
        name = plugin.name
        self.plugins[name] = plugin
        self._failures.pop(name, None)
        self._since[name] = time.time()
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        if number > 1:
            version = f" ({plugin.version})" if plugin.version else ""
            log.info("reloaded: generation %d%s", number, version, extra={"plugin": name})

    def _retire(self, plugin: Hosted) -> None:
        task = asyncio.get_running_loop().create_task(self._end(plugin), name=f"retiring {plugin.name}")
        self._retiring[task] = plugin
        task.add_done_callback(self._retiring.pop)

    async def _end(self, plugin: Hosted) -> None:
        longest_s = max(plugin.settings.timeout_s, plugin.settings.timeout_max_s)
        try:
            async with asyncio.timeout(longest_s):
                await plugin.turns.idle()
        except TimeoutError:
            log.warning("torn down while a turn of it still runs", extra={"plugin": plugin.name})
        await self.discard(plugin)


def _hidden(settings: Settings, plugin: str) -> set[str]:
    """Variables of the environment that hold keys which are not this plugin's."""
    sources = [identity.key for identity in settings.identity.values()]
    sources += settings.agentd.tracing.headers.values()
    for name, each in settings.plugin.items():
        sources += each.secrets.values() if name != plugin else ()
    own = {source.env for source in settings.plugin[plugin].secrets.values()}
    return {source.env for source in sources if source.env is not None} - own
