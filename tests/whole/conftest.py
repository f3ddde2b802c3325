"""A hub and a whole daemon in one loop, with the plugin that writes down what it handles."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import config, supervisor
from agentd.daemon import Daemon
from agentd.demo.ledger import Entry, entries
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from agentd.journal.sqlite import open_journal
from agentd.wire.agentchat import types as wire

QUICK = config.Agentd(
    intake=config.Intake(gap_grace_s=0.1, audit_interval_s=300.0, refetch_retry_max_s=1.0),
    link=config.Link(backoff_first_s=0.05, backoff_max_s=0.3),
    rest=config.Rest(timeout_s=3.0, backoff_first_s=0.05, backoff_max_s=0.3),
    sending=config.Sending(rate_per_s=1_000.0, retry_first_s=0.05, retry_max_s=0.5),
    dispatch=config.Dispatch(drain_timeout_s=5.0),
)
"""The defaults with shorter waits."""


class Rig:
    """One hub, and a daemon that can be stopped and started over the same state."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.hub = hub
        self.folder = folder
        self.settings = QUICK
        self.audit_interval_s = 300.0
        self.plugin_name = "plugin"
        self.plugin: Mapping[str, Any] = {
            "use": "agentd.demo.ledger:plugin",
            "config": {"file": str(folder / "ledger")},
        }
        # Load comes from few peers here, as fast as it can: the guard would take it for a loop.
        self.conduct: dict[str, Any] = {"loop_guard": config.LoopGuard(answers_max=0)}
        self.beside: dict[str, config.PluginSettings] = {}
        self.keys: dict[str, str] = {}
        self.daemon: Daemon | None = None
        self._run: asyncio.Task[None] | None = None

    def identity(self, name: str) -> str:
        self.keys[name] = self.hub.create_agent(name)
        return name

    async def start(self, *, live: bool = True) -> Daemon:
        intake = msgspec.structs.replace(self.settings.intake, audit_interval_s=self.audit_interval_s)
        agentd = msgspec.structs.replace(self.settings, state=str(self.folder / "state"), intake=intake)
        (self.folder / "state").mkdir(exist_ok=True)
        settings = config.Settings(
            agentd=agentd,
            identity={
                name: config.Identity(
                    url=self.hub.url,
                    key=config.KeySource(env="unused"),
                    plugins=(self.plugin_name, *self.beside),
                    **self.conduct,
                )
                for name in self.keys
            },
            plugin={self.plugin_name: config.PluginSettings(**self.plugin), **self.beside},
        )
        self._journal = await open_journal(self.folder / "state" / "journal.db", agentd.journal)
        keys = {name: (lambda name=name: self.keys[name]) for name in self.keys}
        self.daemon = Daemon(settings, self.folder, self._journal, keys, None)
        self._run = asyncio.create_task(self.daemon.run())
        started = asyncio.create_task(self.daemon.started.wait())
        await asyncio.wait((self._run, started), return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if live:
            await self.until(lambda: self.states() == ["live"] * len(self.keys))
        return self.daemon

    async def stop(self) -> None:
        assert self.daemon is not None
        assert self._run is not None
        await self.daemon.stop()
        await self._run
        await self._journal.close()
        self.daemon = self._run = None

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait for it; a daemon that ends meanwhile raises what ended it."""
        assert self._run is not None
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    if self._run.done():
                        self._run.result()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"never: {self.status()} {self.hub.counters()}") from None

    def status(self) -> list[dict[str, Any]]:
        assert self.daemon is not None
        return self.daemon.operations.status()["identities"]

    def states(self) -> list[str]:
        return [each["state"] for each in self.status()]

    def handled(self) -> list[Entry]:
        return list(entries(self.folder / "ledger"))

    def seqs(self, conversation: str) -> list[int]:
        return [entry.seq for entry in self.handled() if entry.conversation == conversation]

    def answers(self, peer: str, agent: str = "agent") -> list[str]:
        """What this peer was told, in order."""
        service = self.hub.service
        conversation = service.conversations.find(self.hub.conversation(peer, agent))
        assert conversation is not None
        rows = service.mailbox.history(service.accounts.get(peer), conversation, after_seq=0, limit=1_000)
        found = [msgspec.json.decode(row, type=wire.MessageRow) for row in rows]
        return [row.content.text or "" for row in found if row.sender == agent and row.content is not None]

    async def until_handled(self, count: int, timeout_s: float = 20.0) -> None:
        await self.until(lambda: len(self.handled()) >= count, timeout_s)

    async def assert_accounted(self, *, absent: int = 0) -> None:
        """Every message of a peer was handled once and in order, every seq up to the server's top is accounted for."""
        await self.until(
            lambda: not any(each["gaps_open"] or each["pending"] or each["held"] for each in self.status())
        )
        tops: dict[str, int] = defaultdict(int)
        expected: dict[str, list[int]] = defaultdict(list)
        for row in self.hub.ledger():
            if not row.former:
                tops[row.conversation] = max(tops[row.conversation], row.seq)
                if row.sender not in self.keys:
                    expected[row.conversation].append(row.seq)
        for conversation, seqs in expected.items():
            last = max(entry.epoch for entry in self.handled() if entry.conversation == conversation)
            got = [entry.seq for entry in self.handled() if (entry.conversation, entry.epoch) == (conversation, last)]
            assert got == seqs, f"{conversation}: handled {got[:20]}..., expected {seqs[:20]}..."
        for name in self.keys:
            for line in await self._journal.conversations(name):
                if line.conversation in tops:
                    await self.until(
                        lambda line=line: self._mark(line.identity, line.conversation) >= tops[line.conversation]
                    )
        assert sum(each["absent"] for each in self.status()) == absent

    def _mark(self, identity: str, conversation: str) -> int:
        assert self.daemon is not None
        life = self.daemon._supervisors[identity]._life
        assert life is not None
        return life.intake.sequencer.lines[conversation].mark


@pytest.fixture(autouse=True)
def keys_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parked identity looks for another key every few seconds, which nobody wants to wait for."""
    monkeypatch.setattr(supervisor, "_KEY_POLL_S", 0.2)


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def make(**hub: Any) -> AsyncIterator[Rig]:
        given = {"cold_rule": False, "sends_per_s": 0, "group_sends_per_s": 0, **hub}
        async with Hub(HubSettings(**given)) as far_end:
            rig = Rig(tmp_path, far_end)
            try:
                yield rig
            finally:
                if rig.daemon is not None:
                    await rig.stop()

    return make


@pytest.fixture
async def rig(make_rig: Callable[..., Any]) -> AsyncIterator[Rig]:
    async with make_rig() as made:
        yield made
