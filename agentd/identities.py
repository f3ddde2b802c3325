"""The identities of one daemon: their task trees, begun and ended while others run.

Always true: one that was ended has no task and no connection any more, and what it handed to the journal is on disk;
its account may run under another name then. Until it is removed, what is stored of it can be decoded.
Not here: what an identity does (supervisor), which plugins serve it (dispatcher).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from agentd import __version__, config
from agentd.host.api import Carrier
from agentd.journal.storage import Journal
from agentd.supervisor import Key, Shared, Supervisor
from agentd.transport.rest import Pool, Rest
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat.calls import AgentChatCalls
from agentd.wire.platform import Platform


class Identities:
    """By name. `make` those to begin with and `start` them; later `make` and `run`, or `remove`; `stop` in the end.

    One that is to run elsewhere: `end`, `make`, `run`.

    supervisors: where they are found by name, empty to begin with. carriers: who makes the calls of `ctx.api` for each.
    """

    def __init__(self, journal: Journal, shared: Shared, pool: Pool, supervisors: dict[str, Supervisor]) -> None:
        self._journal = journal
        self._shared = shared
        self._pool = pool
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.supervisors = supervisors
        self.platforms: dict[str, Platform] = {}
        self.carriers: dict[str, Carrier] = {}

    async def make(self, wanted: Mapping[str, config.Identity], keys: Mapping[str, Callable[[], str]]) -> None:
        """Build what identities need, instead of what there was under these names. keys: what reads the key of each."""
        handles = await self._journal.handles()
        for name, identity in wanted.items():
            key = Key(keys[name])
            platform = AgentChat(name, identity.url, key.reveal, handles.get(name, ""), version=__version__)
            rest = Rest(identity.url, key.reveal, self._shared.settings.rest, pool=self._pool)
            self.platforms[name] = platform
            self.supervisors[name] = supervisor = Supervisor(name, platform, rest, key, self._shared)
            self.carriers[name] = Carrier(AgentChatCalls(platform), supervisor)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Let all run in this group, and those that are added later."""
        self._group = tasks
        for name in self.supervisors:
            self.run(name)

    def run(self, name: str) -> None:
        """Let one run that was made."""
        run = self.supervisors[name].run()
        self._tasks[name] = self._group.create_task(run, name=f"identity {name}")

    async def end(self, name: str) -> None:
        """Let one run no more."""
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.wait((task,))
        # What it handed in is on disk, and known to all, before anybody begins where it stood.
        await self._journal.commit()
        accounts = self._shared.accounts
        for account in [account for account, holder in accounts.items() if holder == name]:
            del accounts[account]

    async def remove(self, name: str) -> None:
        """End one, and know nothing of it any more."""
        await self.end(name)
        del self.supervisors[name], self.platforms[name], self.carriers[name]

    async def stop(self) -> None:
        """End them all."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())


def key_reader(identity: config.Identity) -> Callable[[], str]:
    """Reads an identity's key afresh each time."""
    return partial(_read, identity)


def _read(identity: config.Identity) -> str:
    return config.resolve_key(identity.key).reveal()
