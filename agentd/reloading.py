"""Change without a restart: the configuration read again and the difference applied; plugins whose files changed.

Always true: a configuration is refused whole, with every problem and with nothing changed, or applied whole; a plugin
that cannot be loaded and set up is such a problem. Identities and plugins that did not change do not notice. What
cannot change while the daemon runs is named, and waits for its next start. One change is made at a time.
Not here: what differs (config.changes), generations of plugins, task trees of identities, lanes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from agentd import config, logs
from agentd.config import Changes, Settings
from agentd.dispatcher import Dispatcher
from agentd.errors import AgentdError, ConfigError, Unavailable
from agentd.generations import Generations
from agentd.host.isolated import Hosted
from agentd.host.watching import Watch
from agentd.identities import Identities, key_reader

log = logging.getLogger("agentd.reloading")

_LOOK_S = 0.5  # a few calls of stat per plugin
_QUIET_S = 0.3  # an editor has written all of a file by then


class _Plan(NamedTuple):
    """A change, with all that may be refused done already. changed: plugins of which another generation takes over."""

    found: Changes
    settings: Settings
    ready: Mapping[str, Hosted]
    changed: list[str]


class Reloading:
    """That of one daemon. settings: those that run. conduct: of every identity, changed here too.

    reread: reads the configuration as it is now. embedded: identities are those of our own hub, whatever is configured.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        generations: Generations,
        identities: Identities,
        dispatcher: Dispatcher,
        *,
        embedded: bool,
    ) -> None:
        self.settings = settings
        self.conduct: dict[str, config.Conduct] = dict(settings.identity)
        self._reread = reread
        self._generations = generations
        self._identities = identities
        self._dispatcher = dispatcher
        self._embedded = embedded
        self._given_up = False
        self._planning: asyncio.Future[_Plan] | None = None

    def give_up(self) -> None:
        """The daemon stops: begin no change, break off what has changed nothing yet, and wait for no last turns."""
        self._given_up = True
        self._dispatcher.hurry()
        if self._planning is not None:
            self._planning.cancel()

    async def watch(self) -> None:
        """Reload plugins whose files have changed, until cancelled."""
        generations, loop = self._generations, asyncio.get_running_loop()
        watch = Watch(_QUIET_S)
        while True:
            await asyncio.sleep(_LOOK_S)
            seen = await generations.seen()
            if names := watch.settled(seen, generations.tried, loop.time()):
                async with generations.changing:
                    for name in names:
                        if name in generations.plugins:
                            await generations.reload(name, self.settings)

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and apply it. Returns what changed; see control.api.Daemon.

        Raises ConfigError with every problem, and Unavailable if the daemon stops before anything was changed.
        """
        async with self._generations.changing:
            try:
                plan = await self._until_planned()
            except ConfigError as refused:
                for problem in refused.problems:
                    log.error("configuration refused, the one before stays: %s", problem)
                raise
            # From here on nothing is refused.
            answer = await self._apply(plan)
        log.info("configuration read again: %s", "; ".join(_told(answer)) or "nothing has changed")
        return answer

    async def _until_planned(self) -> _Plan:
        """The plugins may take their time to be set up: as long as they please, were it not for a stop."""
        if not self._given_up:
            self._planning = asyncio.ensure_future(self._plan())
            try:
                return await self._planning
            except asyncio.CancelledError:
                if not self._given_up:
                    raise
            finally:
                self._planning = None
        raise Unavailable("the daemon is stopping")

    async def _plan(self) -> _Plan:
        wanted = self._adopted(await asyncio.to_thread(self._reread))
        found = config.changes(self.settings, wanted)
        changed_outside = [
            *await self._generations.changed_files(),
            *await self._generations.changed_secrets(wanted),
        ]
        used = config.used_plugins(wanted)
        changed = [*found.plugins_changed, *(name for name in changed_outside if name in used)]
        self._refuse_running(found, wanted)
        ready = await self._prepared(wanted, [*found.plugins_added, *dict.fromkeys(changed)])
        return _Plan(found, config.attainable(self.settings, wanted), ready, list(dict.fromkeys(changed)))

    async def _apply(self, plan: _Plan) -> dict[str, Any]:
        found = plan.found
        still_running, rekeyed = await self._carry_out(found, plan.settings, plan.ready)
        return {
            "identities": {
                "added": list(found.added),
                "removed": list(found.removed),
                "moved": list(found.moved),
                "rekeyed": rekeyed,
                "changed": list(found.carried),
            },
            "plugins": {
                "added": list(found.plugins_added),
                "removed": list(found.plugins_removed),
                "reloaded": plan.changed,
            },
            "at_next_start": [*found.at_next_start, *self._unadopted],
            "still_running": still_running,
        }

    def _adopted(self, wanted: Settings) -> Settings:
        """What can be taken over of them: a daemon on its own hub keeps its identities."""
        self._unadopted: list[str] = []
        if not self._embedded:
            if wanted.embedded:
                # Only a start brings the hub that a daemon without identities has.
                raise ConfigError(["no identity is configured; keep one, or stop the daemon and start it anew"])
            return wanted
        self._unadopted = ["identity"] if wanted.identity else []
        running = self.settings
        missing = [name for name in config.used_plugins(running) if name not in wanted.plugin]
        kept = {name: running.plugin[name] for name in missing}
        return Settings(agentd=wanted.agentd, identity=running.identity, plugin={**wanted.plugin, **kept})

    def _refuse_running(self, found: Changes, wanted: Settings) -> None:
        problems = [
            f"identity.{name}: a handler of plugin {plugin} still runs for it from before; try again when it has ended"
            for name in (*found.added, *found.carried)
            for plugin in self._dispatcher.still_running(name, wanted.identity[name].plugins)
        ]
        if problems:
            raise ConfigError(problems)

    async def _prepared(self, wanted: Settings, names: Iterable[str]) -> dict[str, Hosted]:
        ready: dict[str, Hosted] = {}
        problems: list[str] = []
        for name in names:
            try:
                ready[name] = await self._generations.prepare(name, wanted)
            except AgentdError as error:
                problems += str(error).splitlines()
        if problems:
            for plugin in ready.values():
                await self._generations.discard(plugin)
            raise ConfigError(problems)
        return ready

    async def _carry_out(
        self, found: Changes, settings: Settings, ready: Mapping[str, Hosted]
    ) -> tuple[list[str], list[str]]:
        """Returns what still runs though it should not, and whose key is another one."""
        generations, identities = self._generations, self._identities
        before, self.settings = self.settings, settings
        logs.set_level(settings.agentd.log_level)
        still_running = []
        for ended in await asyncio.gather(*map(self._remove, found.removed)):
            still_running += ended
        for name, plugin in ready.items():
            await (generations.swap(plugin) if name in generations.plugins else generations.add(plugin))
        for name in found.moved:
            await identities.end(name)
        starting = {name: settings.identity[name] for name in (*found.added, *found.moved)}
        await identities.make(starting, {name: key_reader(identity) for name, identity in starting.items()})
        leaving = []
        for name in (*found.added, *found.carried):
            leaving += await self._serve(name)
        for name in starting:
            identities.run(name)
        stay = [name for name in settings.identity if name not in starting]
        rekeyed = await asyncio.gather(*(self._rekey(name, before) for name in stay))
        for name in found.plugins_removed:
            generations.remove(name)
        # Last, and for all together: nobody is out of service for the time that the turns of others take.
        left = await self._dispatcher.until_left(leaving, self.settings.agentd.dispatch.drain_timeout_s)
        still_running += [f"{identity}: {plugin}" for identity, plugin in left]
        return still_running, [name for name, changed in zip(stay, rekeyed, strict=True) if changed]

    async def _remove(self, name: str) -> list[str]:
        self.conduct.pop(name, None)
        # Its sends can still leave while its last turns end.
        left = await self._dispatcher.forget(name, self.settings.agentd.dispatch.drain_timeout_s)
        await self._identities.remove(name)
        return [f"{name}: {plugin}" for plugin in left]

    async def _serve(self, name: str) -> list[tuple[str, str]]:
        identity = self.conduct[name] = self.settings.identity[name]
        return [(name, plugin) for plugin in await self._dispatcher.serve(name, identity.plugins, identity)]

    async def _rekey(self, name: str, before: Settings) -> bool:
        now = self.settings.identity[name].key
        if now.env is not None and now == before.identity[name].key:
            return False  # the environment of a process stays as it is
        read = key_reader(self.settings.identity[name]) if now != before.identity[name].key else None
        try:
            return await self._identities.supervisors[name].rekey(read)
        except AgentdError as error:  # it could be read a moment ago; the identity goes on with the one that it has
            log.error("its key cannot be read: %s", error, extra={"identity": name})
            return False


def _told(answer: Mapping[str, Any]) -> Iterable[str]:
    """What a reload did, in a few words each."""
    for kind, singular in (("identities", "identity"), ("plugins", "plugin")):
        for what, names in answer[kind].items():
            if names:
                yield f"{singular if len(names) == 1 else kind} {what}: {', '.join(names)}"
    for key, meaning in (("at_next_start", "takes effect at the next start"), ("still_running", "still running")):
        if answer[key]:
            yield f"{meaning}: {', '.join(answer[key])}"
