"""Keeps one identity going: its connection, its way in, its way out; starts them, restarts them, parks them.

One `Supervisor` per identity, one task tree under it. A broken invariant ends that tree, loudly, and it is started
anew from what is on disk; other identities do not notice. A refused key parks the identity until the key has changed.
Only a journal that cannot be used goes up to the daemon.

Always true: the state told by `status` is one of core.health.STATES, with the reason and the time of the change, and a
bounded history. Nothing is sent or connected under a key that was refused.
Not here: how to connect (transport/), order and disk (intake/), sending (sender.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentd import config, metrics
from agentd.core.events import Message, RateLimitWarning, Record, Send, Signal
from agentd.core.health import Pressure, State
from agentd.core.reconnect import CloseMeaning, Dial, Park, Reconnect, Throttle, backoff_s
from agentd.errors import AgentdError, CredentialsRefused, JournalError, NotConnected, Unavailable, first_of
from agentd.intake import Audit, Drain, Intake, Questions
from agentd.journal.storage import Account, Carried, Journal
from agentd.sender import Sender
from agentd.tracing import Traces
from agentd.transport.link import Link, dial
from agentd.transport.rest import Rest
from agentd.wire.platform import Platform, Request, Response, Transfer

log = logging.getLogger("agentd.supervisor")

_HISTORY = 50
_KEY_POLL_S = 5.0
_IDENTIFY_WAIT_S = 10.0  # how long a plugin's call waits for the key to be known as good: a start and a first redial
_IDENTIFY_LOOK_S = 0.05
_NOT_CONNECTED = ("off", "connecting", "parked")
_RESTART_FIRST_S = 1.0
_RESTART_MAX_S = 60.0
_DRAIN_RETRY_FIRST_S = 0.5
_DRAIN_RETRY_MAX_S = 30.0
_CLEAN_AUDITS = 3
"""Audits in a row that find nothing, after which a deaf connection is believed again though nothing was pushed: one
alone proves little, since the drain at the reconnect took what there was."""


class Key:
    """An identity's key as it was last read; `read` may wait for a disk or a command, so it runs in a thread."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._value = ""

    def reveal(self) -> str:
        """The key, for the one who sends it."""
        return self._value

    async def refresh(self, read: Callable[[], str] | None = None) -> bool:
        """Read it again, from elsewhere if `read` is given; True if it is another one.

        Raises ConfigError where it cannot be read.
        """
        value = await asyncio.to_thread(read or self._read)
        self._read = read or self._read
        changed, self._value = value != self._value, value
        return changed


class Change(msgspec.Struct, frozen=True):
    """One change of state. at: Unix seconds."""

    state: State
    at: float
    reason: str


class Bells(msgspec.Struct, frozen=True):
    """Who is told what. on_records: after each commit. on_signal: of what has no seq. on_settled: of ended sends."""

    on_records: Callable[[Sequence[Record]], None]
    on_signal: Callable[[Signal], None]
    on_settled: Callable[[Carried], None]


class Shared(msgspec.Struct, frozen=True):
    """What all identities share. accounts: (address, handle) to the identity that has it; two would answer twice.

    shedding: why all of them leave messages with the server, or "". traces: who follows sends, or None.
    """

    settings: config.Agentd
    journal: Journal
    throttle: Throttle
    bells: Bells
    accounts: dict[tuple[str, str], str]
    shedding: Callable[[], str]
    traces: Traces | None = None


class Supervisor:
    """One identity. `run` until cancelled; raises JournalError only. platform, rest: they use `key` as it is then."""

    def __init__(
        self,
        name: str,
        platform: Platform,
        rest: Rest,
        key: Key,
        shared: Shared,
    ) -> None:
        self.name = name
        self.platform = platform
        self._rest = rest
        self._key = key
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._state: State = "off"
        self._life: _Life | None = None
        self._shedding = self._pressed_by_all = shared.shedding()
        self._backlog = Pressure()
        self._began = self._entered_at = self._loop.time()
        self._live_at: float | None = None
        self.history: deque[Change] = deque(maxlen=_HISTORY)
        self.reconnects = 0
        self.restarts = 0
        self.enter("off", "not started")

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What this identity is doing."""
        return self._state

    def enter(self, state: State, reason: str = "") -> None:
        """Change the state, if it is a change."""
        if self.history and state == self._state and reason == self.history[-1].reason:
            return
        self._note_live()
        self._state = state
        self._entered_at = self._loop.time()
        if self.history:
            log.info("%s%s", state, f": {reason}" if reason else "", extra={"identity": self.name})
        self.history.append(Change(state, time.time(), reason))

    def _note_live(self) -> None:
        """Remember that mail could come in until now. What is shed could have, and is counted elsewhere."""
        if self._state in ("live", "deaf") or (self._state == "throttled" and self._shedding):
            self._live_at = self._loop.time()

    def shed(self, why: str) -> None:
        """Leave messages with the server, or, where there is no reason to any more, fetch what was left.

        why: the process has a reason to, or "" if it has none.
        """
        self._pressed_by_all = why
        self._shed()

    def behind(self, is_so: bool) -> None:
        """This identity's handlers are too far behind, or are not any more."""
        self._backlog.press("handlers are too far behind", is_so, self._loop.time())
        self._shed()

    def _shed(self) -> None:
        why = ", ".join(filter(None, (self._backlog.why, self._pressed_by_all)))
        if why != self._shedding:
            self._note_live()
            self._shedding = why
            if self._life is not None:
                self._life.shed(why)

    async def rekey(self, read: Callable[[], str] | None = None) -> bool:
        """Read the key again, and connect with it if it is another one; returns whether it is. See Key.refresh.

        A parked identity tries the same one once more: what it was refused for, such as a suspension, may be over.
        """
        changed = await self._key.refresh(read)
        if self._life is not None and (changed or self._state == "parked"):
            self._life.try_key()
        return changed

    def queued(self, sends: Sequence[Send]) -> None:
        """These rows of ours are in the outbox on disk."""
        if self._life is not None:
            self._life.sender.queued(sends)

    async def rest(self, timeout_s: float) -> None:
        """Let no more sends leave, and wait so long for the answers to those that have."""
        if self._life is not None:
            await self._life.sender.rest(timeout_s)

    async def perform(self, request: Request) -> Response:
        """A call of a plugin. Raises as Rest does, and NotConnected while the key is not known to be good."""
        await self._until_identified()
        try:
            return await self._rest.perform(request)
        except CredentialsRefused as refused:
            if self._life is not None:
                self._life.credentials_refused(refused)
            raise NotConnected(f"identity {self.name}: its key is refused") from refused
        except Unavailable as failed:
            raise self._told_of(failed) from failed

    async def transfer(self, transfer: Transfer) -> Response:
        """A file of a plugin. Raises as Rest does, and NotConnected."""
        try:
            return await self._rest.transfer(transfer)
        except Unavailable as failed:
            raise self._told_of(failed) from failed

    def _told_of(self, failed: Unavailable) -> Unavailable:
        """A failed request says something about what was asked only while we are connected."""
        if self._state not in _NOT_CONNECTED:
            return failed
        return NotConnected(f"identity {self.name} is {self._state}: {failed}", failed.retry_after_s, failed.request_id)

    def say(self, frame: bytes) -> bool:
        """Write a frame to the socket; False while there is none, or no room."""
        return self._life is not None and self._life.say(frame)

    async def _until_identified(self) -> None:
        """A handler may run before its identity has been connected for the first time; a moment is worth waiting."""
        until = self._loop.time() + _IDENTIFY_WAIT_S
        while (life := self._life) is None or not life.identified:
            if (life is not None and life.refused is not None) or self._loop.time() >= until:
                raise NotConnected(f"identity {self.name} is {self._state}: {self.history[-1].reason}")
            await asyncio.sleep(_IDENTIFY_LOOK_S)

    @property
    def sender(self) -> Sender | None:
        """The way out; another one after a restart, None before the start."""
        return self._life.sender if self._life is not None else None

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live; after a broken invariant, live again from what is on disk."""
        while True:
            began = self._loop.time()
            self._life = _Life(self, self._rest, self._key, self._shared)
            self._life.intake.shedding = bool(self._shedding)
            try:
                await self._life.run()
            except Exception as broken:
                failure = first_of(broken) if isinstance(broken, ExceptionGroup) else broken
                self.enter("off", f"broke: {failure!r}")
                if isinstance(failure, JournalError):
                    raise failure from None
                log.exception("this identity broke and starts anew", extra={"identity": self.name}, exc_info=broken)
            finally:
                self._life.close()
            if self._loop.time() - began > _RESTART_MAX_S:
                self.restarts = 0
            self.restarts += 1
            await asyncio.sleep(backoff_s(self.restarts, _RESTART_FIRST_S, _RESTART_MAX_S, random.random()))

    def status(self) -> dict[str, Any]:
        """What is known without asking anybody. Ages in seconds, None for never."""
        last = self.history[-1]
        self._note_live()
        now = self._loop.time()
        return {
            "name": self.name,
            "platform": self.platform.name,
            "handle": f"@{self.platform.handle}" if self.platform.handle else None,
            "state": self._state,
            "state_since": last.at,
            "state_age_s": round(now - self._entered_at, 3),
            "state_reason": last.reason,
            "up_s": round(now - self._began, 3),
            "last_live_age_s": None if self._live_at is None else round(now - self._live_at, 3),
            "history": list(self.history),
            "reconnects": self.reconnects,
            "restarts": self.restarts,
            "shedding": self._backlog.why,
            "shedding_s": self._backlog.age_s(now),
            **(self._life.status() if self._life is not None else {}),
        }


class _Life:
    """One run of an identity: everything that is built anew after a broken invariant."""

    def __init__(self, owner: Supervisor, rest: Rest, key: Key, shared: Shared) -> None:
        settings, journal = shared.settings, shared.journal
        self._owner = owner
        self._platform = owner.platform
        self._rest = rest
        self._key = key
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self.refused: CredentialsRefused | None = None
        self._fatal: asyncio.Future[None] = self._loop.create_future()
        self._drain_wanted = asyncio.Event()
        self._key_to_try = asyncio.Event()
        self._account = ("", "")  # address and handle; see Shared
        self.identified = False
        self._hears_nothing = False
        self._pushed_then = ""
        self._clean_audits = 0
        self._last_pong: float | None = None
        self.intake = Intake(
            owner.name,
            self._platform,
            journal,
            settings.intake,
            on_records=self._records,
            on_signal=self._signal,
            on_question=self._question,
            on_survey=self._drain_wanted.set,
            on_fatal=self._fail,
        )
        refused = self.credentials_refused
        self._questions = Questions(self.intake, self._perform, on_credentials=refused)
        self._drain = Drain(self.intake, self._perform, on_credentials=refused)
        self._audit = Audit(
            self.intake, self._drain, self._questions, self._perform, on_deaf=self._deaf, on_credentials=refused
        )
        self.sender = Sender(
            owner.name,
            self._platform,
            journal,
            rest.perform,
            self.intake,
            settings.sending,
            on_credentials=refused,
            on_settled=shared.bells.on_settled,
            traces=shared.traces,
        )
        self._reconnect = Reconnect(
            first_s=settings.link.backoff_first_s,
            max_s=settings.link.backoff_max_s,
            stable_s=settings.link.stable_s,
        )

    async def run(self) -> None:
        """Live until cancelled or broken."""
        await self.intake.load()
        self.sender.pause()  # it reads and counts the outbox; nothing leaves before the key is known to be good
        async with asyncio.TaskGroup() as tasks:
            name = self._owner.name
            tasks.create_task(self._watch(), name=f"{name}: journal")
            tasks.create_task(self._questions.run(), name=f"{name}: questions")
            tasks.create_task(self._drain.run_acks(), name=f"{name}: drain acks")
            tasks.create_task(self.sender.run(), name=f"{name}: sender")
            tasks.create_task(self._stay_connected(), name=f"{name}: connection")

    def close(self) -> None:
        """Let go of what outlives the tasks."""
        self.intake.close()
        self._fatal.cancel()

    # -- the connection ---------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._shared.throttle.reserve(self._loop.time()) - self._loop.time()))
            if self._owner.state != "connecting":  # else the reason of the last failure stands, logged once
                self._owner.enter("connecting")
            self._reconnect.dialling()
            meaning, asked_s = CloseMeaning.AGAIN, None
            if self._key_to_try.is_set():
                self._key_to_try.clear()
                self.refused = None
            try:
                await self._key.refresh()
                await self._identify()
                if not self._key_to_try.is_set():
                    if self.refused is None:
                        self.sender.resume()
                    meaning = await self._connection()
            except CredentialsRefused as refused:
                meaning, self.refused = CloseMeaning.REFUSED, refused
            except AgentdError as failure:
                asked_s = failure.retry_after_s if isinstance(failure, Unavailable) else None
                self._owner.enter("connecting", str(failure))
            decision = self._reconnect.ended(self._loop.time(), meaning, random.random(), asked_s)
            while isinstance(decision, Park):
                decision = await self._parked()
            if asked_s and decision.after_s >= asked_s:
                self._owner.enter("throttled", f"the server asked for {asked_s:g} s")
            await self._sleep(decision.after_s)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not if there is a key to try."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._key_to_try.wait()

    def try_key(self) -> None:
        """Try the key anew: the connection under the old one ends, and nothing leaves before we know whose it is."""
        self._key_to_try.set()
        self.identified = False
        self.sender.pause()
        self._reconnect.key_changed()
        if self._link is not None:
            self._link.close(1000, "another key")

    async def _identify(self) -> None:
        """Learn once per life whose key this is: own words are told by the handle."""
        if self.identified:
            return
        handle = self._platform.read_account(await self._rest.perform(self._platform.account_request()))
        known = (await self._shared.journal.handles()).get(self._owner.name)
        if known and known != handle:
            raise CredentialsRefused(
                0, "OTHER_ACCOUNT", f"the key is @{handle}'s, but the journal holds @{known}'s mail under this name"
            )
        self._account = self._platform.link_url(), handle
        holder = self._shared.accounts.setdefault(self._account, self._owner.name)
        if holder != self._owner.name:
            raise CredentialsRefused(0, "SAME_ACCOUNT", f"the key is @{handle}'s, for whom identity {holder} runs here")
        self._platform.handle = handle
        if known is None:
            await self._shared.journal.commit(Account(self._owner.name, self._platform.name, handle))
        self.identified = not self._key_to_try.is_set()

    async def _connection(self) -> CloseMeaning:
        """One connection from dial to close."""
        settings = self._shared.settings.link
        async with dial(
            self._platform,
            settings,
            on_frame=self.intake.frame,
            on_burst=self.intake.flush,
        ) as self._link:
            self._reconnect.opened(self._loop.time())
            self.intake.attach(self._link)
            # Either came while this connection was opened.
            if self._key_to_try.is_set():
                self._link.close(1000, "another key")
            elif self.refused is not None:
                self._link.close(1000, "credentials refused")
            try:
                async with asyncio.TaskGroup() as tasks:
                    catching_up = tasks.create_task(self._catch_up(), name=f"{self._owner.name}: catching up")
                    auditing = tasks.create_task(self._audit.run(), name=f"{self._owner.name}: tail audit")
                    closed = await self._link.closed()
                    catching_up.cancel()
                    auditing.cancel()
            finally:
                self.intake.detach()
                self._last_pong = self._link.last_pong
                self._link = None
        code = "cut" if closed.code is None else str(closed.code)
        self._owner.reconnects += 1
        metrics.RECONNECTS.inc(self._owner.name, code)
        if self.refused is not None:
            return CloseMeaning.REFUSED
        meaning = self._platform.close_meaning(closed.code, closed.reason)
        if meaning is CloseMeaning.REFUSED:
            self.refused = CredentialsRefused(closed.code or 0, "CLOSED", closed.reason)
        self._owner.enter("connecting", f"connection ended ({code}) {closed.reason}".strip())
        return meaning

    async def _catch_up(self) -> None:
        """Drain at once, and again whenever something was left with the server."""
        retry_s = _DRAIN_RETRY_FIRST_S
        self._owner.enter("catching_up")
        while True:
            self._drain_wanted.clear()
            try:
                await self._drain.drain()
            except CredentialsRefused as refused:
                self.credentials_refused(refused)
                return
            except AgentdError as failure:
                self._owner.enter("catching_up", f"the backlog cannot be read yet: {failure}")
                await asyncio.sleep(retry_s * random.uniform(0.75, 1.25))
                retry_s = min(retry_s * 2, _DRAIN_RETRY_MAX_S)
                continue
            retry_s = _DRAIN_RETRY_FIRST_S
            if not self.intake.shedding:
                self._owner.enter("deaf" if self._hears_nothing else "live")
            await self._drain_wanted.wait()

    async def _parked(self) -> Dial | Park:
        """Wait until the key is another one. A refused key is never tried again by itself.

        One that was refused here, since another identity has its account, is tried once that one has gone.
        """
        assert self.refused is not None
        self.identified = False
        self.sender.pause()
        self._owner.enter("parked", f"the platform refused the key: {self.refused}")
        while not (self._key_to_try.is_set() or self._has_account_to_itself(self.refused) or await self._key_changed()):
            await self._sleep(_KEY_POLL_S)
        self.refused = None
        return self._reconnect.key_changed() or Dial()

    def _has_account_to_itself(self, refused: CredentialsRefused) -> bool:
        return refused.code == "SAME_ACCOUNT" and self._account not in self._shared.accounts

    async def _key_changed(self) -> bool:
        try:
            return await self._key.refresh()
        except AgentdError:
            return False  # being replaced this very moment, perhaps

    # -- bells ------------------------------------------------------------------------------------------------------

    async def _perform(self, request: Request) -> Response:
        # Under a stranger's key the platform would say of a hole that it is not ours to read.
        if not self.identified:
            raise NotConnected(f"identity {self._owner.name}: its key is not known to be good")
        return await self._rest.perform(request)

    def _records(self, records: Sequence[Record]) -> None:
        if self.sender.listening:
            for record in records:
                if isinstance(record.event, Message) and not record.event.own:
                    self.sender.heard_from(record.event.answer_to)
        self._shared.bells.on_records(records)

    def _signal(self, signal: Signal) -> None:
        if isinstance(signal, RateLimitWarning):
            self.sender.pacing.warned(self._loop.time())
        self._shared.bells.on_signal(signal)

    def _question(self, question: Any) -> None:
        self._questions.ask(question)

    def _deaf(self, found: int) -> None:
        if found:
            self._hears_nothing, self._clean_audits = True, 0
            self._pushed_then = self.intake.pushed_until
            self._owner.enter("deaf", f"{found} events were found that this connection had not pushed")
            if self._link is not None:
                self._link.close(1000, "deaf")
            return
        self._clean_audits += 1
        if self._hears_nothing and (
            self.intake.pushed_until > self._pushed_then or self._clean_audits >= _CLEAN_AUDITS
        ):
            self._hears_nothing = False
            if self._owner.state == "deaf":
                self._owner.enter("live", "hears again")

    def credentials_refused(self, refused: CredentialsRefused) -> None:
        """The platform said so to somebody who used this identity's key: nothing more leaves under it."""
        self.refused = refused
        self.identified = False
        self.sender.pause()
        if self._link is not None:
            self._link.close(1000, "credentials refused")

    def say(self, frame: bytes) -> bool:
        """See Supervisor."""
        return self._link is not None and self._link.send_burst([frame])

    def _fail(self, failure: BaseException) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(failure)

    async def _watch(self) -> None:
        await self._fatal

    def shed(self, why: str) -> None:
        """See Supervisor."""
        self.intake.shedding = bool(why)
        if why:
            self._owner.enter("throttled", f"{why}: new messages stay with the server")
        elif self.intake.has_shed:
            self.intake.has_shed = False
            self._owner.enter("catching_up", "fetching what was left with the server")
            self._drain_wanted.set()
        elif self._owner.state == "throttled":
            self._owner.enter("live")

    # -- status -----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The part of the identity's status that lives here."""
        now, intake, counters = self._loop.time(), self.intake, self.intake.counters

        def age(at: float | None) -> float | None:
            return None if at is None else round(max(0.0, now - at), 3)

        return {
            "conversations": len(intake.sequencer.lines),
            "journaled": intake.journaled,
            "held": intake.sequencer.held,
            "held_full": intake.sequencer.overflowing > 0,
            "questions": self._questions.waiting,
            "questions_full": self._questions.full,
            "questions_forgone": self._questions.forgone,
            "gaps_open": intake.gaps_open,
            "gaps_found": counters.gaps_found,
            "seqs_refetched": counters.refetched,
            "absent": intake.absent,
            "late": counters.late,
            "repeats": counters.repeats,
            "malformed": counters.malformed,
            "unknown_frames": counters.unknown_frames,
            "resets": counters.resets,
            "shed": counters.shed,
            "acked": counters.acked,
            "acks_declined": counters.acks_declined,
            "outbox_ready": self.sender.counts["ready"],
            "outbox_unknown": self.sender.counts["unknown"],
            "outbox_sent": self.sender.counts["sent"],
            "outbox_refused": self.sender.counts["refused"],
            "outbox_expired": self.sender.counts["expired"],
            "outbox_full": self.sender.room <= 0,
            "targets_stopped": self.sender.stopped,
            "targets_paced": len(self.sender.pacing),
            "pacing_per_s": self.sender.pacing.identity_rate,
            "deaf": self._hears_nothing,
            "last_pong_age_s": age(self._link.last_pong if self._link is not None else self._last_pong),
            "last_inbound_age_s": age(intake.last_inbound),
            "last_audit_age_s": age(self._audit.last_audit),
        }
