"""A daemon that is killed at any moment, a lossy hub, and three ledgers that agree after every kill.

Each kill comes when the hub has written its n-th frame, or has a certain request in its hands; n comes from a seed,
which a failure prints.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.config import JournalSettings
from agentd.demo.ledger import entries
from agentd.demo.proof import IMPATIENT, Proof
from agentd.hub.faults import Action, FaultPlan, Point, Rule
from agentd.journal.sqlite import open_journal

SETTLE_S = 30.0
LOG_TAIL_CHARS = 6_000

SETTINGS = {**IMPATIENT, "intake": {**IMPATIENT["intake"], "gap_grace_s": 0.1, "audit_interval_s": 0.5}}


class Trial:
    """One state that lives through many kills. Everything random comes from the seed."""

    def __init__(self, folder: Path, seed: int, *, identities: int = 2, peers: int = 8) -> None:
        self.folder = folder
        self.seed = seed
        self.chance = random.Random(seed)
        self.proof = Proof(folder, identities, settings=SETTINGS)
        self._peers = peers
        self._said = 0
        self._position = 0
        self._journaled: set[str] = set()
        self._talks: list[tuple[str, str]] = []

    async def __aenter__(self) -> Trial:
        await self.proof.__aenter__()
        for number in range(self._peers):
            peer = self.proof.peer(f"peer-{number}")
            self._talks.append((peer, self.proof.identities[number % len(self.proof.identities)]))
        self.proof.hub.faults.replace(self.faults())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            error.add_note(f"seed {self.seed}, after {self.proof.kills} kills\n{self.proof.describe()}")
            error.add_note(self.proof.log[-LOG_TAIL_CHARS:])
        await self.proof.__aexit__(kind, error, trace)

    def faults(self) -> FaultPlan:
        return FaultPlan(
            seed=self.chance.randrange(1 << 30),
            push_drop=0.02,
            push_duplicate=0.02,
            push_reorder=0.02,
            push_delay=0.02,
            push_cut=0.003,
            push_cut_mid_frame=0.003,
            rest_5xx=0.02,
            rest_disconnect=0.01,
            rest_disconnect_after=0.02,
        )

    def say(self, count: int = 1) -> None:
        for _ in range(count):
            peer, identity = self.chance.choice(self._talks)
            self._said += 1
            self.proof.hub.post(peer, identity, f"message {self._said}")

    async def talk(self, count: int) -> None:
        """Live traffic, a few hundred messages a second, whether or not the daemon is there."""
        for _ in range(count):
            self.say()
            await asyncio.sleep(self.chance.expovariate(300.0))

    async def kill(self) -> None:
        """Kill it, look at what it left behind, and start it again."""
        await self.proof.kill()
        await self._assert_that_what_was_acknowledged_is_on_disk()
        self.proof.start()

    async def kill_after_frames(self, frames: int) -> None:
        async with asyncio.timeout(SETTLE_S):
            await self.proof.hub.until_frames(self.proof.hub.frames_pushed + frames)
        await self.kill()

    async def kill_on(self, rule: Rule) -> None:
        """Kill it as soon as this fault has struck."""
        faults, name = self.proof.hub.faults, f"{rule.point.value}.{rule.action.value}"
        before = faults.fired[name]
        faults.add(rule)
        async with asyncio.timeout(SETTLE_S):
            while faults.fired[name] == before:
                await asyncio.sleep(0)
        await self.kill()

    async def assert_that_the_ledgers_agree(self) -> None:
        answered = await self.proof.until_answered(SETTLE_S)
        verdict = self.proof.verdict()
        assert answered, f"{self.proof.unanswered()} messages were not answered within {SETTLE_S} s"
        assert verdict.clean, verdict
        assert verdict.messages == verdict.handled == self._said
        lanes: dict[tuple[str, str], list[int]] = defaultdict(list)
        for entry in entries(self.folder / "handled.jsonl"):
            lanes[entry.identity, entry.conversation].append(entry.seq)
        for lane, seqs in lanes.items():
            # What a kill repeats is the one event of a lane whose turn was not committed, and nothing before it.
            once = [seq for seq, _ in itertools.groupby(seqs)]
            assert once == sorted(set(once)), f"{lane} was handled as {seqs}"
        assert verdict.handled_again <= self.proof.kills * len(lanes), verdict

    async def assert_that_it_ends_in_order(self) -> None:
        """It stops when told to, the hub has been told of everything, and no invariant broke on the way."""
        self.proof.hub.faults.replace(FaultPlan())
        async with asyncio.timeout(SETTLE_S):
            while any(self.proof.hub.undelivered(name) for name in self.proof.identities):
                await asyncio.sleep(0.05)
        assert await self.proof.stop() == 0
        wrong = [line for line in self.proof.log.splitlines() if '"level":"error"' in line or "Warning" in line]
        assert not wrong, wrong[:3]

    async def _assert_that_what_was_acknowledged_is_on_disk(self) -> None:
        """P4, seen from the far end: the hub keeps whatever the journal of the dead daemon lacks."""
        file = self.folder / "state" / "journal.db"
        if not file.exists():
            return  # killed before it had made one
        journal = await open_journal(file, JournalSettings())
        try:
            while rows := await journal.read_log(None, self._position, 5_000):
                self._position = rows[-1].position
                self._journaled |= {msgspec.json.decode(row.payload)["id"] for row in rows}
        finally:
            await journal.close()
        service = self.proof.hub.service
        numbers = [service.accounts.get(name).number for name in self.proof.identities]
        kept = {
            envelope.message_id
            for number in numbers
            for envelope in service.mailbox.envelopes(number, None, 100_000) or []
        }
        peers = {peer for peer, _ in self._talks}
        stored = {row.id for row in self.proof.hub.ledger() if row.sender in peers}
        assert stored <= self._journaled | kept, "the hub was told of messages that are not on disk"


async def kills_at_random_frames(folder: Path, seed: int, rounds: int) -> None:
    """Each round: live traffic, a kill in its midst, now and then another while it catches up, and the verdict."""
    async with Trial(folder, seed) as trial:
        trial.proof.start()
        for _ in range(rounds):
            talking = asyncio.create_task(trial.talk(60))
            await trial.kill_after_frames(trial.chance.randint(1, 40))
            if trial.chance.random() < 0.3:
                trial.say(10)
                await trial.kill_after_frames(trial.chance.randint(1, 8))
            await talking
            await trial.assert_that_the_ledgers_agree()
        await trial.assert_that_it_ends_in_order()


@pytest.mark.parametrize("seed", [1, 2])
async def test_kills_at_random_frames_leave_three_ledgers_that_agree(tmp_path: Path, seed: int) -> None:
    await kills_at_random_frames(tmp_path, seed, rounds=10)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 110))
async def test_five_hundred_kills_leave_three_ledgers_that_agree(tmp_path: Path, seed: int) -> None:
    await kills_at_random_frames(tmp_path, seed, rounds=50)


async def test_kills_while_it_starts_over_a_backlog_leave_three_ledgers_that_agree(tmp_path: Path) -> None:
    async with Trial(tmp_path, seed=3) as trial:
        trial.say(400)
        trial.proof.start()
        for frames in (1, 20, 60):
            await trial.kill_after_frames(frames)
            trial.say(100)
        await trial.assert_that_the_ledgers_agree()
        await trial.assert_that_it_ends_in_order()


async def test_kills_when_a_send_was_accepted_and_not_answered_send_nothing_twice(tmp_path: Path) -> None:
    async with Trial(tmp_path, seed=4) as trial:
        trial.proof.start()
        for nth in (1, 3, 9):
            talking = asyncio.create_task(trial.talk(40))
            accepted_unanswered = Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send", nth=nth)
            await trial.kill_on(accepted_unanswered)
            await talking
            await trial.assert_that_the_ledgers_agree()
        await trial.assert_that_it_ends_in_order()


async def test_kills_when_a_send_has_left_and_was_not_accepted_lose_no_answer(tmp_path: Path) -> None:
    async with Trial(tmp_path, seed=5) as trial:
        trial.proof.start()
        for nth in (1, 4):
            talking = asyncio.create_task(trial.talk(40))
            await trial.kill_on(Rule(point=Point.REST, action=Action.HANG, route="send", nth=nth))
            await talking
            await trial.assert_that_the_ledgers_agree()
        await trial.assert_that_it_ends_in_order()


@pytest.mark.parametrize("action", [Action.HANG, Action.DISCONNECT_AFTER])
async def test_kills_at_the_acknowledgement_of_a_drain_lose_nothing(tmp_path: Path, action: Action) -> None:
    async with Trial(tmp_path, seed=6) as trial:
        for _ in range(2):
            trial.say(200)
            if not trial.proof.running:
                trial.proof.start()
            else:
                await trial.kill()
            trial.proof.hub.faults.add(Rule(point=Point.DRAIN, action=Action.DROP, times=100))
            await trial.kill_on(Rule(point=Point.REST, action=action, route="sync_ack"))
            await trial.assert_that_the_ledgers_agree()
        await trial.assert_that_it_ends_in_order()
