"""A daemon with the bookkeeping plugin, killed anywhere, and books that must balance at the hub and on disk.

Always true: what was said is compared word for word with what the hub accepted, and with what the journal keeps.
Nothing here looks into the daemon to decide what happened.
Not here: where and when it is killed (the tests).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agentd.config import JournalSettings
from agentd.demo.proof import IMPATIENT, Proof
from agentd.hub.mailbox import LedgerRow
from agentd.journal.sqlite import open_journal
from agentd.wire.agentchat import types as wire

ROOT = Path(__file__).parents[2]
SETTLE_S = 60.0
TALKS_MAX = 100
LOG_TAIL_CHARS = 6_000
WISHES = ("plain", "now", "later", "expiring")
_ANSWERS = {"plain": 1, "now": 2, "later": 2, "expiring": 1}
_SETTINGS = {**IMPATIENT, "intake": {**IMPATIENT["intake"], "gap_grace_s": 0.1, "audit_interval_s": 0.5}}


class Proofed(Proof):
    """A daemon process with a plugin of these tests."""

    plugin: ClassVar[str]

    def _configuration(self) -> str:
        return super()._configuration().replace("agentd.demo.ledger:plugin", self.plugin)

    def start(self, program: Sequence[str] = ("-m", "agentd"), **environ: str) -> None:
        super().start(program, PYTHONPATH=str(ROOT), **environ)

    async def __aexit__(self, *error: Any) -> None:
        if error[1] is not None:
            error[1].add_note(f"after {self.kills} kills\n{self.describe()}\n{self.log[-LOG_TAIL_CHARS:]}")
        await super().__aexit__(*error)

    async def until_identity(self, reached: Callable[[dict[str, Any]], object], timeout_s: float = SETTLE_S) -> None:
        """Wait until the first identity's status is as wanted."""
        async with asyncio.timeout(timeout_s):
            while not ((status := await self.status()) and reached(status["identities"][0])):
                assert self.running, "the daemon has ended"
                await asyncio.sleep(0.02)


class Books(Proofed):
    """One daemon, its identity and its peers. `say` and `kill` as you like, then `settle` and `close_the_books`."""

    plugin = "tests.crash.bookkeeper:plugin"
    lawful: ClassVar[tuple[str, ...]] = ()
    """Parts of errors in the log that belong to what is tested."""
    padding: ClassVar[str] = ""
    """What every message is longer by."""
    settings: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Sections of the configuration beside those that shorten its waits."""

    def __init__(self, folder: Path, *, peers: int = 3, identities: int = 1) -> None:
        super().__init__(folder, identities, settings={**_SETTINGS, **self.settings})
        self.said: dict[str, list[tuple[str, str]]] = {f"peer-{number}": [] for number in range(peers)}
        self._reached = folder / "reached"
        self._answered: Counter[str] = Counter()
        self._expected: Counter[str] = Counter()
        self._looked_at = 0

    async def __aenter__(self) -> Books:
        await super().__aenter__()
        for name in self.said:
            self.peer(name)
        return self

    # -- the daemon -------------------------------------------------------------------------------------------------

    def start_to_die_at(self, point: str, nth: int) -> None:
        self._reached.unlink(missing_ok=True)
        self.start(("-m", "tests.crash.launcher"), CRASH_AT=f"{nth} {point}", CRASH_REACHED=str(self._reached))

    async def until_started(self) -> None:
        """Wait until it is connected, or has got to its end before that."""
        while self.running and not self.hub.connections(self.identities[0]):
            await asyncio.sleep(0.01)

    async def until_dead_at(self, point: str) -> None:
        """Talk until the kill comes. Fails if it ends otherwise, or goes on because it never gets there."""
        for _ in range(TALKS_MAX):
            self.say_everything()
            with contextlib.suppress(TimeoutError):
                code = await self.until_gone(0.3)
                break
        else:
            raise AssertionError(f"never reached: {point}")
        assert code == -signal.SIGKILL, f"it ended with {code} instead of being killed"
        assert self._reached.read_text().splitlines() == [point]
        self.kills += 1

    async def died_at(self, point: str, timeout_s: float) -> bool:
        """The same where the point need not be reached: kill it wherever it is when the time is over."""
        try:
            assert await self.until_gone(timeout_s) == -signal.SIGKILL
        except TimeoutError:
            await self.kill()
            return False
        assert self._reached.read_text().splitlines() == [point]
        self.kills += 1
        return True

    # -- the far end ------------------------------------------------------------------------------------------------

    def say(self, peer: str, *wishes: str) -> None:
        """The last word of each is what is wished for."""
        rows = self.said[peer]
        texts = [f"{peer}/{len(rows) + place} {self.padding}{wish}" for place, wish in enumerate(wishes, 1)]
        stored = self.hub.post(peer, self.identities[0], *texts)
        for text, wish, each in zip(texts, wishes, stored, strict=True):
            rows.append((each.id, text))
            self._expected[each.id] = _ANSWERS[wish.rpartition(" ")[2]]

    def say_everything(self) -> None:
        """One message of each wish from every peer, each beginning with another."""
        for number, peer in enumerate(self.said):
            self.say(peer, *(WISHES[(number + place) % len(WISHES)] for place in range(len(WISHES))))

    async def settle(self, look_s: float = 0.05) -> None:
        """Wait until everything said has had all its answers."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while missing := self._missing():
                    assert self.running, "the daemon has ended"
                    await asyncio.sleep(look_s)
        except TimeoutError:
            raise AssertionError(f"answers that never came: {missing}") from None

    def _missing(self) -> dict[str, int]:
        for row in self._new_answers():
            self._answered[row.reply_to] += 1
        return dict(self._expected - self._answered)

    def _new_answers(self) -> list[LedgerRow]:
        rows = self.hub.ledger(after=self._looked_at)
        if rows:
            self._looked_at = rows[-1].position
        return [row for row in rows if row.sender == self.identities[0]]

    # -- the books --------------------------------------------------------------------------------------------------

    async def close_the_books(self) -> None:
        """Stop it in order, and compare: nothing missing, nothing twice, all in order, the state as it should be."""
        # Answered is not yet handled: the last outcome and the last own seq may be on their way to disk.
        await self.until_identity(lambda it: not (it["pending"] or it["outbox_ready"] or it["gaps_open"]))
        assert await self.stop() == 0
        wrong = [line for line in self.log.splitlines() if '"level":"error"' in line or "Warning" in line]
        wrong = [line for line in wrong if not any(told in line for told in self.lawful)]
        assert not wrong, wrong[:3]
        for peer, said in self.said.items():
            self._assert_that_each_answer_came_once(peer, [text for _, text in said])
        verdict = self.verdict()
        assert (verdict.lost, verdict.out_of_order) == (0, 0), verdict
        assert verdict.handled == sum(map(len, self.said.values()))
        self._assert_that_repeats_of_send_now_got_the_first_answer()
        await self._assert_that_the_disk_agrees()

    def _assert_that_each_answer_came_once(self, peer: str, said: list[str]) -> None:
        heard = self._heard(peer)
        # The numbers come from the plugin's state: one too many, one lost or one out of order would show in the text.
        replies = [text for text in heard if text.startswith("number ")]
        assert replies == [f"number {count} {text}" for count, text in enumerate(said, 1)]
        at_once = [text for text in heard if text.startswith("at once ")]
        assert at_once == [f"at once {text}" for text in said if text.endswith(" now")]
        wakes = [text for text in heard if text.startswith("wake-up ")]
        reminded = [text for text in said if text.endswith(" later")]
        assert [text.split(" ", 2)[1] for text in wakes] == [str(count) for count in range(1, len(reminded) + 1)]
        assert sorted(text.split(" ", 2)[2] for text in wakes) == sorted(reminded)
        assert len(heard) == len(replies) + len(at_once) + len(wakes)

    def _heard(self, peer: str) -> list[str]:
        service = self.hub.service
        conversation = service.conversations.find(self.hub.conversation(peer, self.identities[0]))
        assert conversation is not None
        rows = service.mailbox.history(service.accounts.get(peer), conversation, after_seq=0, limit=1_000_000)
        found = [msgspec.json.decode(row, type=wire.MessageRow) for row in rows]
        return [row.content.text or "" for row in found if row.sender == self.identities[0] and row.content is not None]

    def _assert_that_repeats_of_send_now_got_the_first_answer(self) -> None:
        told: dict[str, set[tuple[str, int]]] = defaultdict(set)
        file = self.folder / "handled.jsonl.now"
        for line in file.read_text().splitlines() if file.exists() else ():
            message, sent, seq = json.loads(line)
            told[message].add((sent, seq))
        assert len(told) == sum(text.endswith(" now") for said in self.said.values() for _, text in said)
        assert all(len(answers) == 1 for answers in told.values()), told

    async def _assert_that_the_disk_agrees(self) -> None:
        journal = await open_journal(self.folder / "state" / "journal.db", JournalSettings())
        try:
            identity = self.identities[0]
            numbers = {row.conversation: row.number for row in await journal.conversations(identity)}
            for peer, said in self.said.items():
                number = numbers[self.hub.conversation(peer, identity)]
                counted = json.loads(await journal.state_get("ledger", number, "count") or b"0")
                woken = json.loads(await journal.state_get("ledger", number, "wakes") or b"0")
                assert (counted, woken) == (len(said), sum(text.endswith(" later") for _, text in said)), peer
            assert await journal.timers("ledger") == []
            assert await journal.outbox_open(identity) == []
            assert await journal.dead(identity, 10) == []
            assert await journal.attempts("ledger") == []
        finally:
            await journal.close()
