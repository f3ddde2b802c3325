"""Plugins in every kind of trouble, in the daemon's process and in their own: healthy ones beside them never stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from agentd.config import JournalSettings
from agentd.demo.proof import IMPATIENT, Proof
from agentd.journal.sqlite import open_journal

PEERS = 8
ROUNDS = 6

_PRELUDE = """
import asyncio
import os
import signal
import time
from pathlib import Path

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("bad")
began = Path(__file__).with_suffix(".began")


def note(message: Message) -> None:
    with began.open("a") as file:
        print(message.id, file=file)


def answer(message: Message, ctx: Context) -> None:
    ctx.reply("done", metadata={"reply_to": f"{began.stem}/{message.id}"})


"""

BAD = {
    "raises": """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    raise ValueError("always")
""",
    "hangs": """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    await asyncio.sleep(3600)
""",
    "hangs-in-a-thread": """
@plugin.on(Message)
def handle(message: Message, ctx: Context) -> None:
    note(message)
    time.sleep(3600)
""",
    "overstays": """
@plugin.on(Message, timeout_s=0.05)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    await asyncio.sleep(3600)
""",
    "overstays-in-a-thread": """
@plugin.on(Message, timeout_s=0.05)
def handle(message: Message, ctx: Context) -> None:
    note(message)
    time.sleep(0.5)
""",
}

DEADLY = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    if message.text.startswith("die"):
        os._exit(7)
"""


DEAF = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""


class Neighbour(NamedTuple):
    """A plugin's source, and what stands in its table beside `use`."""

    source: str
    settings: str = ""


ANSWERS = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    answer(message, ctx)
"""

_ENDS_ITSELF = """
hoard = []


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    while message.text == "poison":
        {ends}
    answer(message, ctx)
"""


PROCESS = 'isolate = "process"'


def isolated(ends: str, settings: str = "") -> Neighbour:
    return Neighbour(_ENDS_ITSELF.format(ends=ends), f"{PROCESS}\n{settings}")


ISOLATED = {
    "eats-memory": isolated("hoard.append(bytearray(4_000_000))", "memory_max_mb = 128"),
    "exits": isolated("os._exit(3)"),
    "loops": isolated("pass", "cpu_max_s = 0.3"),
    "segfaults": isolated("os.kill(os.getpid(), signal.SIGSEGV)"),
}
"""Each ends its own process at a poison, and answers everything else."""


class Neighbourhood(Proof):
    """A daemon with the ledger, which is healthy, and others beside it: a source, or with settings of its own.

    given: settings by section of the configuration, instead of the proof's.
    """

    def __init__(
        self, folder: Path, given: dict[str, dict[str, float]] | None = None, **neighbours: str | Neighbour
    ) -> None:
        settings = {section: {**IMPATIENT.get(section, {})} for section in {**IMPATIENT, **(given or {})}}
        for section, values in (given or {}).items():
            settings[section].update(values)
        super().__init__(folder, 1, settings=settings)
        self._neighbours = {
            name.replace("_", "-"): Neighbour(each) if isinstance(each, str) else each
            for name, each in neighbours.items()
        }

    def _configuration(self) -> str:
        text = super()._configuration()
        for name, neighbour in self._neighbours.items():
            file = self.folder / f"{name}.py"
            file.write_text(_PRELUDE + neighbour.source)
            text += f'[plugin.{name}]\nuse = "{file}"\n{neighbour.settings}\n'
        listed = ", ".join(f'"{name}"' for name in ("ledger", *self._neighbours))
        return text.replace('plugins = ["ledger"]', f"plugins = [{listed}]")

    def began(self, name: str) -> list[str]:
        """What a neighbour was given so far, in order."""
        file = self.folder / f"{name}.began"
        return file.read_text().splitlines() if file.exists() else []

    async def until_began(self, name: str) -> None:
        async with asyncio.timeout(30):
            while not self.began(name):
                await asyncio.sleep(0.01)

    async def talk(self, *, rounds: int = ROUNDS, poison: bool = False) -> int:
        """Round after round: the next one comes when the healthy plugin has answered all of this one.

        poison: every third round, the last one too, holds one. Returns how many there were.
        """
        for number in range(rounds):
            for peer in range(PEERS):
                between = ["poison"] if poison and peer == number and number % 3 == 2 else []
                self.hub.post(self.peer(f"peer-{peer}"), "agent-1", f"round {number}", *between, "and another")
            assert await self.until_answered(60.0), self.unanswered()
        return rounds // 3 if poison else 0

    def said(self, *, without: Iterable[str] = ()) -> dict[str, list[str]]:
        """Ids of the peers' messages by conversation, in order. without: not these."""
        left_out, said = set(without), defaultdict(list)
        for row in self.hub.ledger():
            if row.sender in self._peers and row.id not in left_out:
                said[row.conversation].append(row.id)
        return dict(said)

    def answered_by(self, name: str) -> Counter[str]:
        """How often a neighbour's answers to each message were accepted by the hub."""
        marked = [row.reply_to.partition("/") for row in self.hub.ledger() if row.sender in self.identities]
        return Counter(message for by, _, message in marked if by == name and message)

    async def until_answered_by(self, name: str, count: int) -> None:
        async with asyncio.timeout(240):  # a worker that died often is started again after a growing pause
            while len(self.answered_by(name)) < count:
                await asyncio.sleep(0.05)

    async def until_nothing_is_pending(self) -> None:
        async with asyncio.timeout(60):
            while await self.pending():
                await asyncio.sleep(0.05)

    async def pending(self) -> int:
        """Events that not every plugin is through with; 1 while the daemon does not answer."""
        status = await self.status()
        return int(status["identities"][0]["pending"]) if status is not None else 1

    async def shed(self) -> int:
        """Messages that intake has left with the hub."""
        status = await self.status()
        assert status is not None
        return int(status["identities"][0]["shed"])

    def assert_healthy(self) -> None:
        verdict = self.verdict()
        assert verdict.clean, verdict
        assert verdict.handled == verdict.messages
        assert verdict.handled_again == 0

    def assert_handled_all_in_order(self, name: str) -> None:
        """A healthy neighbour was given every message once, in order, and each of its answers was accepted once."""
        given = self.began(name)
        place = {message: number for number, message in enumerate(given)}
        assert len(place) == len(given)
        for ids in self.said().values():
            assert ids == sorted(ids, key=place.__getitem__)
        assert self.answered_by(name) == Counter(given)
        assert len(place) == sum(map(len, self.said().values()))

    async def dead(self) -> dict[str, int]:
        """Dead letters by plugin, of a daemon that has stopped."""
        journal = await open_journal(self.folder / "state" / "journal.db", JournalSettings())
        try:
            rows = await journal.dead(None, 10_000)
        finally:
            await journal.close()
        return dict(Counter(row.plugin for row in rows))


@pytest.mark.parametrize("kind", BAD)
async def test_a_plugin_in_trouble_stops_no_lane_of_the_healthy_one_beside_it(tmp_path: Path, kind: str) -> None:
    async with Neighbourhood(tmp_path, bad=BAD[kind]) as proof:
        proof.start()
        await proof.until_live()
        proof.hub.post(proof.peer("peer-0"), "agent-1", "the first")
        await proof.until_began("bad")
        await proof.talk()
        proof.assert_healthy()
        status = await proof.status()
        assert status is not None
        assert status["identities"][0]["pending"] > 0, "it is still in trouble"
        assert status["identities"][0]["state"] == "live"


@pytest.mark.parametrize("kind", ISOLATED)
async def test_a_plugin_that_ends_its_own_process_costs_its_poison_and_nobody_else_anything(
    tmp_path: Path, kind: str
) -> None:
    async with Neighbourhood(tmp_path, healthy=Neighbour(ANSWERS, PROCESS), **{kind: ISOLATED[kind]}) as proof:
        proof.start()
        await proof.until_live()
        poisons = await proof.talk(poison=True)
        assert await proof.pending() > 0, "it is still in trouble"
        messages = sum(map(len, proof.said().values()))
        await proof.until_answered_by("healthy", messages)
        await proof.until_answered_by(kind, messages - poisons)
        await proof.until_nothing_is_pending()
        proof.assert_healthy()
        proof.assert_handled_all_in_order("healthy")
        assert set(proof.answered_by(kind).values()) == {1}
        assert await proof.stop() == 0
        assert await proof.dead() == {kind: poisons}


async def test_all_of_them_together_stop_no_lane_of_the_healthy_ones(tmp_path: Path) -> None:
    bad: dict[str, str | Neighbour] = {**BAD, **ISOLATED}
    async with Neighbourhood(tmp_path, healthy=Neighbour(ANSWERS, PROCESS), **bad) as proof:
        proof.start()
        await proof.until_live()
        proof.hub.post(proof.peer("peer-0"), "agent-1", "the first")
        for name in BAD:
            await proof.until_began(name)
        # One poison each: after every death the next start is put off for longer.
        poisons = await proof.talk(rounds=3, poison=True)
        messages = sum(map(len, proof.said().values()))
        await proof.until_answered_by("healthy", messages)
        proof.assert_healthy()
        proof.assert_handled_all_in_order("healthy")
        for kind in ISOLATED:
            await proof.until_answered_by(kind, messages - poisons)
            assert set(proof.answered_by(kind).values()) == {1}
        assert await proof.pending() > 0, "the others are still in trouble"
        await proof.kill()
        dead = await proof.dead()
        assert {kind: dead[kind] for kind in ISOLATED} == dict.fromkeys(ISOLATED, poisons)


async def test_four_plugins_that_hang_leave_the_healthy_one_its_share_of_the_calls(tmp_path: Path) -> None:
    hanging = dict.fromkeys(("one", "two", "three", "four"), BAD["hangs"])
    async with Neighbourhood(tmp_path, **hanging) as proof:
        proof.start()
        await proof.until_live()
        # More conversations than each may have calls, so that together they would take all that there are.
        for number in range(20):
            proof.hub.post(proof.peer(f"peer-{number}"), "agent-1", "hello", "again")
        assert await proof.until_answered(60.0), proof.unanswered()
        proof.assert_healthy()
        assert await proof.pending() >= 20 * 2, "they hang"


async def test_what_waits_for_a_plugin_that_is_stuck_does_not_make_intake_shed_for_the_healthy_one(
    tmp_path: Path,
) -> None:
    given = {"intake": {"undispatched_high": 100, "undispatched_low": 40}}
    async with Neighbourhood(tmp_path, given, stuck=BAD["hangs"]) as proof:
        proof.start()
        await proof.until_live()
        # In more conversations than it may have calls: some hang, and some wait behind those for ever.
        for _ in range(2):
            for peer in range(20):
                proof.hub.post(proof.peer(f"peer-{peer}"), "agent-1", "one", "two", "three")
            assert await proof.until_answered(60.0), proof.unanswered()
        await proof.until_live()
        shed = await proof.shed()
        for _ in range(4):
            for peer in range(20):
                proof.hub.post(proof.peer(f"peer-{peer}"), "agent-1", "one", "two", "three")
            assert await proof.until_answered(60.0), proof.unanswered()
        proof.assert_healthy()
        assert await proof.shed() == shed
        assert await proof.pending() >= 6 * 20 * 3, "it is stuck"


async def test_a_handler_that_is_deaf_to_cancellation_does_not_outlive_the_order_to_stop(tmp_path: Path) -> None:
    async with Neighbourhood(tmp_path, {"dispatch": {"drain_timeout_s": 1.0}}, deaf=DEAF) as proof:
        proof.start()
        await proof.until_live()
        proof.hub.post(proof.peer("peer-0"), "agent-1", "hello")
        await proof.until_began("deaf")
        assert await proof.until_answered(30.0)
        assert proof.daemon_pid is not None
        os.kill(proof.daemon_pid, signal.SIGTERM)
        # The time to drain, the one for cancelled handlers to end, and a slow machine's.
        assert await proof.until_gone(20.0) == 0
        proof.assert_healthy()


async def test_a_plugin_that_ends_the_process_costs_the_healthy_one_no_event(tmp_path: Path) -> None:
    async with Neighbourhood(tmp_path, deadly=DEADLY) as proof:
        supervising = asyncio.create_task(_restart_whenever_gone(proof))
        # One culprit at a time: the next poison comes when the one before is quarantined.
        for number in range(3):
            for peer in range(PEERS):
                text = "die" if peer == number else "live"
                proof.hub.post(proof.peer(f"peer-{peer}"), "agent-1", "before", text, "after")
            assert await proof.until_answered(60.0), proof.unanswered()
            await proof.until_nothing_is_pending()
        supervising.cancel()
        assert await proof.stop() == 0
        verdict = proof.verdict()
        assert verdict.clean, verdict
        assert await proof.dead() == {"deadly": 3}
        assert len(set(proof.began("deadly"))) == 3 * 3 * PEERS, "nor did the deadly one miss anything"


async def test_several_events_at_once_that_end_the_process_condemn_no_innocent(tmp_path: Path) -> None:
    async with Neighbourhood(tmp_path, deadly=DEADLY) as proof:
        supervising = asyncio.create_task(_restart_whenever_gone(proof))
        for peer in range(PEERS):
            text = "die" if peer < 3 else "live"
            proof.hub.post(proof.peer(f"peer-{peer}"), "agent-1", "before", text, "after")
        assert await proof.until_answered(90.0), proof.unanswered()
        await proof.until_nothing_is_pending()
        supervising.cancel()
        assert await proof.stop() == 0
        verdict = proof.verdict()
        assert verdict.clean, verdict
        assert await proof.dead() == {"deadly": 3}
        assert len(set(proof.began("deadly"))) == 3 * PEERS, "nor did the deadly one miss anything"


async def _restart_whenever_gone(proof: Neighbourhood) -> None:
    """What systemd does."""
    while True:
        proof.start()
        assert await proof.until_gone(3_600) == 7
