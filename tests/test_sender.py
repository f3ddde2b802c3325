"""The sender alone: a real outbox on disk, and a platform whose answers are scripted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from agentd import config
from agentd.core.events import Content, Event, Position, Send
from agentd.errors import AgentdError, CredentialsRefused, OutcomeUnknown, Unavailable, WireViolation
from agentd.journal.sqlite import SqliteJournal, open_journal
from agentd.journal.storage import Account, Carried, OutboxRow, Queued
from agentd.sender import Sender
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat import types as wire
from agentd.wire.platform import Request, Response, Sighting

TIMEOUT_S = 10.0
ME = "agent"
QUICK = config.Sending(rate_per_s=10_000.0, retry_first_s=0.01, retry_max_s=0.05)


class WithoutKeys(AgentChat):
    """A platform that stores a repeated send a second time."""

    deduplicates_sends = False


def refusal(status: int, code: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    wait = float(named["retry-after"]) if "retry-after" in named else None
    return Response(
        status=status, headers=named, body=msgspec.json.encode({"code": code, "message": "no"}), retry_after_s=wait
    )


BACKLOGGED = refusal(429, "RECIPIENT_BACKLOGGED")
AWAITING_REPLY = refusal(403, "AWAITING_REPLY")

Step = Response | AgentdError | Callable[[], Awaitable[Response | AgentdError | None]]


class FarEnd:
    """Stores what is sent, once per key. `script`: per target, what happens to the next requests instead."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Step]] = defaultdict(deque)
        self.warnings: dict[str, deque[int]] = defaultdict(deque)
        self.stored: dict[str, wire.SendRequest] = {}
        self.asked: list[tuple[str, str]] = []
        self.asked_at: list[float] = []
        self.settled: list[Carried] = []
        self.refused_credentials: list[CredentialsRefused] = []
        self._seqs: Counter[str] = Counter()
        self._answers: dict[str, bytes] = {}
        self._happened = asyncio.Event()

    def plan(self, target: str, *steps: Step) -> None:
        self.script[target] += steps

    async def perform(self, request: Request, *, once: bool) -> Response:
        assert once, "the sender repeats by its own rules"
        sent = msgspec.json.decode(request.body or b"", type=wire.SendRequest)
        target = sent.to or sent.conversation_id or ""
        self.asked.append((target, sent.content.text or ""))
        self.asked_at.append(asyncio.get_running_loop().time())
        self.happened()
        if self.script[target]:
            step = self.script[target].popleft()
            outcome = await step() if callable(step) else step
            if isinstance(outcome, AgentdError):
                raise outcome
            if outcome is not None:
                return outcome
        return self.store(sent, target)

    def store(self, sent: wire.SendRequest, target: str) -> Response:
        headers = {"idempotent-replay": "true"} if sent.client_msg_id in self.stored else {}
        if sent.client_msg_id not in self.stored:
            self._seqs[target] += 1
            self.stored[sent.client_msg_id] = sent
            row = wire.MessageRow(
                id=f"msg_{target}_{self._seqs[target]}",
                conversation_id=f"conv_{target[1:]}",
                seq=self._seqs[target],
                sender=ME,
                content=sent.content,
                client_msg_id=sent.client_msg_id,
            )
            self._answers[sent.client_msg_id] = wire.encoder.encode(row)
        if self.warnings[target]:
            headers["x-backlog-warning"] = f"{target[1:]}={self.warnings[target].popleft()}"
        return Response(status=201, headers=headers, body=self._answers[sent.client_msg_id])

    def texts(self, target: str) -> list[str]:
        """What was asked for this target, repeats included."""
        return [text for each, text in self.asked if each == target]

    def happened(self) -> None:
        self._happened.set()

    def on_settled(self, carried: Carried) -> None:
        self.settled.append(carried)
        self.happened()

    def on_credentials(self, refused: CredentialsRefused) -> None:
        self.refused_credentials.append(refused)
        self.happened()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self._happened.clear()
                await self._happened.wait()


class Seqs:
    """Stands where intake stands: is told of every send that is under way and of every place that one got."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.places: list[tuple[str, int]] = []
        self.addresses: dict[str, str] = {}
        self.tops: dict[str, int] = {}
        self.epoch = 1

    def address(self, target: str) -> str:
        return self.addresses.get(target, target)

    def position(self, target: str) -> Position | None:
        top = self.tops.get(target)
        return None if top is None else Position(f"conv_{target[1:]}", self.epoch, top)

    def sending(self, target: str) -> None:
        self.under_way[target] += 1

    def own(self, event: Event, target: str) -> None:
        assert self.under_way[target], "told while the send counts as under way"
        self.places.append((target, event.seq))

    def sending_over(self, target: str) -> None:
        self.under_way[target] -= 1


class Rig:
    """An outbox, and a sender over it that can be ended and begun again."""

    def __init__(self, journal: SqliteJournal, platform: AgentChat, settings: config.Sending) -> None:
        self.journal = journal
        self.platform = platform
        self.settings = settings
        self.far_end = FarEnd()
        self.seqs = Seqs()
        self._run: asyncio.Task[None] | None = None
        self.sender = self.make()

    def make(self) -> Sender:
        return Sender(
            ME,
            self.platform,
            self.journal,
            self.far_end.perform,
            self.seqs,
            self.settings,
            on_credentials=self.far_end.on_credentials,
            on_settled=self.far_end.on_settled,
        )

    def begin(self) -> None:
        self._run = asyncio.create_task(self.sender.run())

    async def end(self) -> None:
        if self._run is not None:
            self._run.cancel()
            with suppress(asyncio.CancelledError):
                await self._run
            self._run = None

    async def restart(self) -> None:
        await self.end()
        await self.journal.commit()
        self.sender = self.make()
        self.begin()

    async def queue(self, target: str, *texts: str, ring: bool = True) -> list[Send]:
        """Put sends into the outbox as a handler's turn does: first the disk, then the bell."""
        sends = [
            Send(identity=ME, target=target, content=Content(text=text), client_msg_id=f"{target}/{text}")
            for text in texts
        ]
        await self.journal.commit(*(Queued(send, 1.0) for send in sends))
        if ring:
            self.sender.queued(sends)
        return sends

    async def row(self, key: str) -> OutboxRow:
        """What the disk says of a send, once everything handed in so far is there."""
        await self.journal.commit()
        row = await self.journal.outbox_find(key, ME)
        assert row is not None
        return row

    async def until_stopped(self, key: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not self.sender.needs_decision((await self.row(key)).send):
                await asyncio.sleep(0.01)

    async def until_settled(self, count: int) -> None:
        await self.far_end.until(lambda: len(self.far_end.settled) >= count)


@asynccontextmanager
async def outbox(
    folder: Path, *, platform: type[AgentChat] = AgentChat, settings: config.Sending = QUICK
) -> AsyncIterator[Rig]:
    journal = await open_journal(folder / "journal.db", config.JournalSettings(linger_ms=0.0))
    rig = Rig(journal, platform(ME, "http://far.invalid", lambda: "key", ME, version="0"), settings)
    try:
        await journal.commit(Account(ME, "agentchat", ME))
        yield rig
    finally:
        await rig.end()
        await journal.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with outbox(tmp_path) as made:
        made.begin()
        yield made


def once(texts: Sequence[str]) -> list[str]:
    """Without immediate repeats."""
    return [text for at, text in enumerate(texts) if not at or texts[at - 1] != text]


NUMBERS = [str(number) for number in range(6)]


async def test_a_send_that_was_accepted_is_on_disk_with_its_place_before_anybody_is_told(rig: Rig) -> None:
    await rig.queue("@bob", "hello")
    await rig.until_settled(1)
    row = await rig.journal.outbox_find("@bob/hello", ME)
    assert row is not None
    assert (row.send.state, row.result_id, row.result_seq, row.conversation) == ("sent", "msg_@bob_1", 1, "conv_bob")
    assert row.send.attempts == 1
    assert rig.seqs.places == [("@bob", 1)]
    assert not rig.seqs.under_way.total()
    assert (rig.sender.counts["sent"], rig.sender.counts["ready"]) == (1, 0)


async def test_the_order_of_a_target_is_kept_through_every_kind_of_retry(rig: Rig) -> None:
    rig.far_end.plan(
        "@bob",
        refusal(503, "INTERNAL_ERROR"),
        Unavailable("no route"),
        OutcomeUnknown("cut"),
        BACKLOGGED,
        WireViolation("an answer that nobody can read"),
    )
    await rig.queue("@bob", *NUMBERS)
    await rig.until_settled(len(NUMBERS))
    asked = rig.far_end.texts("@bob")
    assert once(asked) == NUMBERS
    assert asked.count("0") == 6
    assert [sent.content.text for sent in rig.far_end.stored.values()] == NUMBERS
    assert (await rig.row("@bob/0")).send.attempts == 6


@pytest.mark.parametrize(
    "answer",
    [
        refusal(429, "RECIPIENT_BACKLOGGED", retry_after="3600"),
        refusal(429, "COLD_CAP_EXCEEDED", retry_after="3600"),
        refusal(503, "INTERNAL_ERROR", retry_after="3600"),
        AWAITING_REPLY,
        Unavailable("busy", retry_after_s=3_600.0),
    ],
    ids=["backlogged", "cold cap", "5xx", "awaiting reply", "unavailable"],
)
async def test_a_target_that_waits_delays_no_other(rig: Rig, answer: Step) -> None:
    rig.far_end.plan("@slow", answer)
    await rig.queue("@slow", *NUMBERS)
    await rig.queue("@bob", *NUMBERS)
    await rig.until_settled(len(NUMBERS))
    assert rig.far_end.texts("@bob") == NUMBERS
    assert rig.far_end.texts("@slow") == ["0"], "it waits, and what is behind it waits too"
    row = await rig.row("@slow/0")
    assert row.send.state == "ready"
    assert row.error
    assert row.send.not_before > row.queued_at


async def test_a_target_whose_request_hangs_delays_no_other(rig: Rig) -> None:
    released = asyncio.Event()

    async def hang() -> None:
        await released.wait()

    rig.far_end.plan("@slow", hang)
    await rig.queue("@slow", *NUMBERS)
    await rig.queue("@bob", *NUMBERS)
    await rig.until_settled(len(NUMBERS))
    assert rig.far_end.texts("@slow") == ["0"]
    released.set()
    await rig.until_settled(2 * len(NUMBERS))
    assert rig.far_end.texts("@slow") == NUMBERS


async def test_a_server_that_asks_for_a_wait_gets_it(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(429, "RECIPIENT_BACKLOGGED", retry_after="0.3"))
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    first, second = rig.far_end.asked_at
    assert second - first >= 0.3


async def test_a_rate_limit_of_the_identity_holds_every_target_until_it_is_over(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(429, "RATE_LIMITED", retry_after="0.3"))
    await rig.queue("@bob", "0")
    await rig.far_end.until(lambda: len(rig.far_end.asked) == 1)
    await rig.queue("@carol", "0")
    await rig.until_settled(2)
    assert all(at - rig.far_end.asked_at[0] >= 0.3 for at in rig.far_end.asked_at[1:])


async def test_a_target_that_is_awaited_goes_on_when_it_has_spoken_and_not_before(rig: Rig) -> None:
    rig.far_end.plan("@stranger", AWAITING_REPLY)
    await rig.queue("@stranger", "0", "1")
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    rig.sender.heard_from("@bob")
    await rig.queue("@bob", "1")
    await rig.until_settled(2)
    assert rig.far_end.texts("@stranger") == ["0"]
    rig.sender.heard_from("@stranger")
    await rig.until_settled(4)
    assert rig.far_end.texts("@stranger") == ["0", "0", "1"]


async def test_a_backlog_warning_lowers_the_rate_of_its_recipient_only(rig: Rig) -> None:
    rig.far_end.warnings["@busy"] += [5_000, 5_001]
    await rig.queue("@busy", "0", "1")
    await rig.queue("@bob", *NUMBERS)
    await rig.until_settled(2 + len(NUMBERS))
    pacing = rig.sender.pacing
    assert pacing.backlog_of("@busy") == 5_001
    warned_twice, not_warned = pacing.rate_of("@busy"), pacing.rate_of("@bob")
    assert warned_twice is not None
    assert warned_twice < 5.0
    assert not_warned is None
    left = dict(zip(rig.far_end.asked, rig.far_end.asked_at, strict=True))
    assert left["@busy", "1"] - left["@busy", "0"] >= 0.2, "5 a second after the first warning"
    assert left["@bob", NUMBERS[-1]] < left["@busy", "1"]


async def test_a_refusal_is_final_and_keeps_the_servers_code(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(403, "BLOCKED", x_request_id="req_7"))
    await rig.queue("@bob", "0", "1")
    await rig.until_settled(2)
    row = await rig.row("@bob/0")
    assert row.send.state == "refused"
    assert "403 BLOCKED" in row.error
    assert "req_7" in row.error
    assert rig.far_end.texts("@bob") == ["0", "1"], "it is not repeated, and does not hold up what is behind it"
    assert [carried.state for carried in rig.far_end.settled] == ["refused", "sent"]
    assert not rig.seqs.under_way.total()


async def test_an_unknown_outcome_is_on_disk_before_the_same_key_is_asked_again_and_settles_it(rig: Rig) -> None:
    seen: list[str] = []

    async def look_at_the_disk() -> None:
        seen.append((await rig.row("@bob/0")).send.state)

    async def store_and_hang_up() -> AgentdError:
        rig.far_end.store(
            wire.SendRequest(client_msg_id="@bob/0", content=wire.MessageContent(text="0"), to="@bob"), "@bob"
        )
        return OutcomeUnknown("cut")

    rig.far_end.plan("@bob", store_and_hang_up, look_at_the_disk)
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    assert seen == ["unknown"]
    assert list(rig.far_end.stored) == ["@bob/0"]
    assert rig.sender.replays == 1
    row = await rig.row("@bob/0")
    assert (row.send.state, row.result_seq, row.send.attempts) == ("sent", 1, 2)
    assert (rig.sender.counts["unknown"], rig.sender.counts["ready"], rig.sender.counts["sent"]) == (0, 0, 1)


async def test_a_send_stays_unknown_until_the_platform_has_answered_for_it(rig: Rig) -> None:
    rig.far_end.plan("@bob", OutcomeUnknown("cut"), refusal(503, "INTERNAL_ERROR", retry_after="3600"))
    await rig.queue("@bob", "0")
    await rig.queue("@carol", "0")
    await rig.until_settled(1)
    await rig.far_end.until(lambda: len(rig.far_end.texts("@bob")) == 2)
    assert (await rig.row("@bob/0")).send.state == "unknown", "a 503 does not tell what became of the first attempt"
    assert (rig.sender.counts["unknown"], rig.sender.counts["ready"]) == (1, 0)


async def test_without_deduplication_an_unknown_outcome_stops_its_target_and_is_shown(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=WithoutKeys) as rig:
        states: list[str] = []

        async def look_at_the_disk() -> AgentdError:
            states.append((await rig.row("@bob/0")).send.state)
            return OutcomeUnknown("cut")

        rig.far_end.plan("@bob", look_at_the_disk)
        rig.begin()
        await rig.queue("@bob", "0", "1")
        await rig.queue("@carol", *NUMBERS)
        await rig.until_settled(len(NUMBERS))
        assert states == ["sending"], "a crash in the middle of the request must leave a trace"
        assert (await rig.row("@bob/0")).send.state == "unknown"
        assert (rig.sender.counts["unknown"], rig.sender.counts["ready"]) == (1, 1)
        rig.sender.resume()
        rig.sender.heard_from("@bob")
        await rig.queue("@carol", "last")
        await rig.until_settled(len(NUMBERS) + 1)
        assert rig.far_end.texts("@bob") == ["0"]


class Looked(WithoutKeys):
    """One whose history can be looked at, and shows nothing."""

    @property
    def lookup(self) -> Looked:
        return self

    def request(self, send: Send, after: Position) -> Request:
        return self.history_request(after.conversation, after.seq, 100)

    def read(self, response: Response, send: Send, after: Position) -> Sighting:
        return Sighting([])


async def test_where_a_conversation_stood_is_on_disk_before_a_send_without_a_key_leaves(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=Looked) as rig:
        rig.seqs.tops["@bob"] = 7
        seen: list[tuple[str, Position | None]] = []

        async def look_at_the_disk() -> None:
            row = await rig.row("@bob/0")
            seen.append((row.send.state, row.send.after))

        rig.far_end.plan("@bob", look_at_the_disk)
        rig.begin()
        await rig.queue("@bob", "0")
        await rig.until_settled(1)
        assert seen == [("sending", Position("conv_bob", 1, 7))]


async def test_a_conversation_that_was_numbered_anew_tells_nothing_of_a_send_from_before(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=Looked) as rig:
        rig.seqs.tops["@bob"] = 7

        async def number_anew() -> AgentdError:
            rig.seqs.epoch = 2
            return OutcomeUnknown("cut")

        rig.far_end.plan("@bob", number_anew)
        rig.begin()
        await rig.queue("@bob", "0")
        await rig.until_stopped("@bob/0")
        assert "numbered anew" in (await rig.row("@bob/0")).error
        assert rig.far_end.texts("@bob") == ["0"]


async def test_a_conversation_and_the_handle_of_who_is_in_it_are_one_target_in_one_order(rig: Rig) -> None:
    rig.seqs.addresses["conv_bob"] = "@bob"
    rig.far_end.plan("@bob", refusal(503, "INTERNAL_ERROR"), refusal(429, "RECIPIENT_BACKLOGGED", retry_after="0.1"))
    for number in range(3):
        await rig.queue("@bob", f"to the handle {number}")
        await rig.queue("conv_bob", f"to the conversation {number}")
    await rig.until_settled(6)
    assert once(rig.far_end.texts("@bob")) == [
        f"to the {name} {number}" for number in range(3) for name in ("handle", "conversation")
    ]
    assert not rig.far_end.texts("conv_bob"), "which the platform would refuse"
    assert (await rig.row("conv_bob/to the conversation 0")).send.state == "sent"


async def test_a_send_to_a_conversation_is_decided_on_under_the_name_it_was_given(rig: Rig) -> None:
    rig.seqs.addresses["conv_bob"] = "@bob"
    rig.far_end.plan("@bob", AWAITING_REPLY)
    await rig.queue("conv_bob", "0", "1", "2")
    await rig.far_end.until(lambda: bool(rig.sender.pacing.awaiting))
    assert rig.sender.drop(await rig.row("conv_bob/1")) is not None
    rig.sender.heard_from("@bob")
    await rig.until_settled(3)
    assert rig.far_end.texts("@bob") == ["0", "0", "2"]


async def test_without_deduplication_a_restart_repeats_nothing_whose_outcome_is_unknown(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=WithoutKeys) as rig:
        rig.far_end.plan("@bob", OutcomeUnknown("cut"))
        rig.begin()
        await rig.queue("@bob", "0", "1")
        await rig.queue("@carol", "0")
        await rig.until_settled(1)
        await rig.restart()
        rig.far_end.plan("@carol", refusal(503, "INTERNAL_ERROR", retry_after="0.2"))  # time enough for a repeat
        await rig.queue("@carol", "1")
        await rig.until_settled(2)
        assert rig.far_end.texts("@bob") == ["0"]
        assert (await rig.row("@bob/0")).send.state == "unknown"


async def test_a_restart_takes_up_what_was_ready_or_unknown_with_the_same_keys_in_order(tmp_path: Path) -> None:
    async with outbox(tmp_path) as rig:
        rig.far_end.plan("@bob", OutcomeUnknown("cut"), refusal(503, "INTERNAL_ERROR", retry_after="0.2"))
        rig.far_end.plan("@carol", refusal(503, "INTERNAL_ERROR", retry_after="0.2"))
        rig.begin()
        await rig.queue("@bob", *NUMBERS)
        await rig.queue("@carol", *NUMBERS)
        await rig.far_end.until(lambda: not rig.far_end.script["@bob"] and not rig.far_end.script["@carol"])
        await rig.end()
        await rig.journal.commit()
        assert not rig.far_end.stored
        await rig.restart()
        await rig.until_settled(2 * len(NUMBERS))
        for target in ("@bob", "@carol"):
            assert once(rig.far_end.texts(target)) == NUMBERS
        assert set(rig.far_end.stored) == {f"{target}/{text}" for target in ("@bob", "@carol") for text in NUMBERS}


async def test_a_send_whose_request_was_cut_off_by_the_end_of_the_daemon_is_repeated_under_its_key(rig: Rig) -> None:
    async def store_and_never_answer() -> None:
        rig.far_end.store(
            wire.SendRequest(client_msg_id="@bob/0", content=wire.MessageContent(text="0"), to="@bob"), "@bob"
        )
        rig.far_end.happened()
        await asyncio.Event().wait()

    rig.far_end.plan("@bob", store_and_never_answer)
    await rig.queue("@bob", "0", "1")
    await rig.far_end.until(lambda: bool(rig.far_end.stored))
    await rig.restart()
    await rig.until_settled(2)
    assert rig.far_end.texts("@bob") == ["0", "0", "1"]
    assert list(rig.far_end.stored) == ["@bob/0", "@bob/1"]


async def test_a_restart_forgets_no_reply_that_a_target_owes(rig: Rig) -> None:
    rig.far_end.plan("@stranger", AWAITING_REPLY)
    await rig.queue("@stranger", "0")
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    await rig.restart()
    await rig.queue("@bob", "1")
    await rig.until_settled(2)
    rig.sender.heard_from("@stranger")
    await rig.until_settled(3)
    assert set(rig.far_end.texts("@stranger")) == {"0"}


async def test_a_refused_key_pauses_everything_and_resuming_goes_on_where_it_stopped(rig: Rig) -> None:
    rig.far_end.plan("@bob", CredentialsRefused(401, "UNAUTHORIZED"))
    await rig.queue("@bob", "0", "1")
    await rig.far_end.until(lambda: bool(rig.far_end.refused_credentials))
    await rig.queue("@carol", "0", "1")
    rig.sender.heard_from("@bob")
    await rig.journal.commit()
    assert rig.far_end.asked == [("@bob", "0")]
    assert (await rig.row("@bob/0")).send.state == "ready"
    assert rig.sender.waiting == 4
    rig.sender.resume()
    await rig.until_settled(4)
    assert rig.far_end.texts("@bob") == ["0", "0", "1"]
    assert rig.far_end.texts("@carol") == ["0", "1"]


async def test_requests_under_way_when_the_key_is_refused_still_settle(rig: Rig) -> None:
    released = asyncio.Event()

    async def late() -> None:
        await released.wait()

    rig.far_end.plan("@bob", late)
    rig.far_end.plan("@carol", CredentialsRefused(401, "UNAUTHORIZED"))
    await rig.queue("@bob", "0", "1")
    await rig.queue("@carol", "0")
    await rig.far_end.until(lambda: bool(rig.far_end.refused_credentials))
    released.set()
    await rig.until_settled(1)
    assert rig.far_end.texts("@bob") == ["0"]
    rig.sender.resume()
    await rig.until_settled(3)
    assert rig.far_end.texts("@bob") == ["0", "1"]


async def test_rows_queued_while_the_outbox_is_being_read_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    async with outbox(tmp_path) as rig:
        await rig.queue("@bob", "0", "1", ring=False)
        reading, released = asyncio.Event(), asyncio.Event()
        read = rig.journal.outbox_open

        async def slow_read(identity: str) -> list[Send]:
            found = await read(identity)
            reading.set()
            await released.wait()
            return found

        rig.journal.outbox_open = slow_read  # type: ignore[method-assign] # the moment between reading and ringing
        early = await rig.queue("@bob", "2")  # on disk before the reading and rung before its end: seen twice
        rig.begin()
        await reading.wait()
        await rig.queue("@bob", "3", "4")  # on disk after the reading: rung only
        rig.sender.queued(early)
        released.set()
        await rig.until_settled(5)
        rig.sender.queued(await rig.queue("@bob", "5", ring=False))
        await rig.until_settled(6)
        assert rig.far_end.texts("@bob") == NUMBERS
        assert rig.sender.counts["sent"] == 6
        assert rig.sender.waiting == 0


async def test_a_burst_to_many_targets_stays_within_the_rate_of_the_identity(tmp_path: Path) -> None:
    settings = config.Sending(rate_per_s=200.0, retry_first_s=0.01, retry_max_s=0.05)
    async with outbox(tmp_path, settings=settings) as rig:
        rig.begin()
        for number in range(100):
            await rig.queue(f"@peer-{number}", "0", ring=False)
        await rig.restart()
        await rig.until_settled(100)
        burst, length_s = 20, rig.far_end.asked_at[-1] - rig.far_end.asked_at[0]
        assert length_s >= (100 - burst - 1) / settings.rate_per_s


# Refusals, expiry, and what people decide


async def rows(rig: Rig, *states: str) -> dict[str, str]:
    """Key to state, as the disk has it."""
    await rig.journal.commit()
    return {row.send.client_msg_id: row.send.state for row in await rig.journal.outbox_list(ME, states, 100)}


async def test_a_refusal_keeps_its_code_and_request_id_apart_and_so_does_a_delay(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(403, "BLOCKED", x_request_id="req_7"))
    rig.far_end.plan("@slow", refusal(429, "RECIPIENT_BACKLOGGED", x_request_id="req_8", retry_after="3600"))
    await rig.queue("@slow", "0")
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    refused, delayed = await rig.row("@bob/0"), await rig.row("@slow/0")
    assert (refused.code, refused.request_id, refused.send.attempts) == ("BLOCKED", "req_7", 1)
    assert (delayed.code, delayed.request_id, delayed.send.state) == ("RECIPIENT_BACKLOGGED", "req_8", "ready")


async def test_a_restart_knows_how_many_sends_reached_each_end(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(403, "BLOCKED"))
    await rig.queue("@bob", "0", "1")
    await rig.until_settled(2)
    await rig.restart()
    await rig.queue("@bob", "2")
    await rig.until_settled(3)
    assert (rig.sender.counts["sent"], rig.sender.counts["refused"]) == (2, 1)


async def expiring(rig: Rig, key: str, in_s: float, target: str = "@bob") -> Send:
    send = Send(identity=ME, target=target, content=Content(text=key), client_msg_id=key, expires_at=time.time() + in_s)
    await rig.journal.commit(Queued(send, 1.0))
    rig.sender.queued([send])
    return send


async def test_a_send_that_waits_longer_than_it_is_worth_expires_on_time_and_holds_up_nothing(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(429, "RECIPIENT_BACKLOGGED", retry_after="0.8"))
    await expiring(rig, "stale", 0.4)
    await rig.queue("@bob", "0")
    await rig.until_settled(2)
    assert [(carried.client_msg_id, carried.state) for carried in rig.far_end.settled] == [
        ("stale", "expired"),
        ("@bob/0", "sent"),
    ]
    assert rig.far_end.texts("@bob") == ["stale", "0"]
    assert (await rig.row("stale")).send.attempts == 1
    assert (rig.sender.counts["expired"], rig.sender.counts["ready"], rig.sender.waiting) == (1, 0, 0)


async def test_a_send_expires_while_its_identity_may_not_send(rig: Rig) -> None:
    rig.sender.pause()
    await expiring(rig, "stale", 0.05)
    await rig.until_settled(1)
    assert (await rig.row("stale")).send.state == "expired"
    assert rig.far_end.asked == []


async def test_a_send_that_is_in_time_leaves_and_is_marked_as_leaving_first(rig: Rig) -> None:
    states: list[str] = []

    async def look_at_the_disk() -> None:
        states.append((await rig.row("fresh")).send.state)

    rig.far_end.plan("@bob", look_at_the_disk)
    await expiring(rig, "fresh", 60.0)
    await rig.until_settled(1)
    assert states == ["sending"], "after a crash nobody else could say whether it had left"
    assert (await rig.row("fresh")).send.state == "sent"


async def test_what_may_have_reached_the_platform_does_not_expire_but_is_asked_for(rig: Rig) -> None:
    async def outlive_it() -> AgentdError:
        await asyncio.sleep(0.6)  # the time that the request takes
        return OutcomeUnknown("cut")

    rig.far_end.plan("@bob", outlive_it)
    await expiring(rig, "asked for", 0.5)
    await rig.until_settled(1)
    assert (await rig.row("asked for")).send.state == "sent"


async def test_a_key_that_is_refused_leaves_no_mark_of_a_send_that_never_left(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=WithoutKeys) as rig:
        rig.far_end.plan("@bob", CredentialsRefused(401, "UNAUTHORIZED"))
        rig.begin()
        await rig.queue("@bob", "0")
        await rig.far_end.until(lambda: bool(rig.far_end.refused_credentials))
        assert (await rig.row("@bob/0")).send.state == "ready"
        await rig.restart()
        await rig.until_settled(1)


async def test_a_reply_that_overtakes_the_refusal_that_asks_for_it_is_not_waited_for(rig: Rig) -> None:
    async def answered_meanwhile() -> None:
        assert rig.sender.listening
        rig.sender.heard_from("@stranger")

    async def refuse_late() -> Response:
        await answered_meanwhile()
        return AWAITING_REPLY

    rig.far_end.plan("@stranger", refuse_late)
    await rig.queue("@stranger", "0")
    await rig.until_settled(1)
    assert rig.far_end.texts("@stranger") == ["0", "0"]


async def test_a_send_that_the_start_found_and_carried_before_its_bell_rang_leaves_once(rig: Rig) -> None:
    sends = await rig.queue("@bob", "0", ring=False)
    await rig.restart()
    await rig.until_settled(1)
    rig.sender.queued(sends)
    await rig.queue("@bob", "1")
    await rig.until_settled(2)
    assert rig.far_end.texts("@bob") == ["0", "1"]


async def test_a_dropped_send_never_leaves_and_what_is_behind_it_does(rig: Rig) -> None:
    rig.far_end.plan("@stranger", AWAITING_REPLY)
    await rig.queue("@stranger", "0", "1", "2")
    await rig.far_end.until(lambda: bool(rig.sender.pacing.awaiting))
    for key in ("@stranger/0", "@stranger/1"):
        commit = rig.sender.drop(await rig.row(key))
        assert commit is not None
        await commit
    rig.sender.heard_from("@stranger")
    await rig.until_settled(3)
    await rig.restart()
    await rig.queue("@stranger", "3")
    await rig.until_settled(4)
    assert rig.far_end.texts("@stranger") == ["0", "2", "3"]
    assert await rows(rig, "dropped") == {"@stranger/0": "dropped", "@stranger/1": "dropped"}
    assert (rig.sender.counts["dropped"], rig.sender.counts["ready"]) == (2, 0)
    assert rig.sender.drop(await rig.row("@stranger/0")) is None
    assert rig.sender.drop(await rig.row("@stranger/2")) is None


async def test_a_send_that_is_under_way_cannot_be_dropped(rig: Rig) -> None:
    refused: list[bool] = []

    async def try_to_drop_it() -> None:
        refused.append(rig.sender.drop(await rig.row("@bob/0")) is None)

    rig.far_end.plan("@bob", try_to_drop_it)
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    assert refused == [True]
    assert (await rig.row("@bob/0")).send.state == "sent"


async def test_a_settled_send_that_is_retried_leaves_under_its_old_key_and_expires_no_more(rig: Rig) -> None:
    rig.far_end.plan("@bob", refusal(403, "BLOCKED"))
    await rig.queue("@bob", "0")
    await rig.until_settled(1)
    await expiring(rig, "stale", -1.0)
    await rig.until_settled(2)
    for key, count in (("@bob/0", 3), ("stale", 4)):
        assert rig.sender.retry(await rig.row(key)) is not None
        await rig.until_settled(count)
    assert list(rig.far_end.stored) == ["@bob/0", "stale"]
    assert (await rig.row("@bob/0")).send.attempts == 2
    assert [rig.sender.counts[state] for state in ("sent", "refused", "expired", "ready")] == [2, 0, 0, 0]
    assert rig.sender.retry(await rig.row("@bob/0")) is None


async def test_decisions_made_before_the_sender_runs_hold(rig: Rig) -> None:
    await rig.end()
    rig.sender = rig.make()
    await rig.queue("@bob", "0", "1", "2", ring=False)
    dropped = [rig.sender.drop(await rig.row(f"@bob/{number}")) for number in (0, 1)]
    assert None not in dropped
    assert rig.sender.retry(await rig.row("@bob/1")) is not None
    rig.begin()
    await rig.until_settled(2)
    assert sorted(rig.far_end.texts("@bob")) == ["1", "2"]
    assert await rows(rig, "ready", "dropped") == {"@bob/0": "dropped"}


@pytest.mark.parametrize(("arrived", "asked"), [(True, ["0", "1"]), (False, ["0", "0", "1"])])
async def test_without_deduplication_people_decide_what_became_of_a_send(
    tmp_path: Path, arrived: bool, asked: list[str]
) -> None:
    async with outbox(tmp_path, platform=WithoutKeys) as rig:
        rig.far_end.plan("@bob", OutcomeUnknown("cut"))
        rig.begin()
        await rig.queue("@bob", "0", "1")
        await rig.far_end.until(lambda: rig.sender.counts["unknown"] == 1)
        await rig.restart()
        await rig.queue("@carol", "0")
        await rig.until_settled(1)
        row = await rig.row("@bob/0")
        assert rig.sender.needs_decision(row.send)
        assert not rig.sender.needs_decision((await rig.row("@bob/1")).send)
        decide = rig.sender.drop if arrived else rig.sender.retry
        assert decide(row) is not None
        await rig.until_settled(3)
        assert rig.far_end.texts("@bob") == asked
        assert rig.sender.counts["unknown"] == 0
        assert not rig.sender.needs_decision((await rig.row("@bob/0")).send)


async def test_without_deduplication_a_target_goes_on_only_when_everything_is_decided(tmp_path: Path) -> None:
    async with outbox(tmp_path, platform=WithoutKeys) as rig:
        queued = await rig.queue("@bob", "0", "1", "2", ring=False)
        for send in queued[:2]:
            await rig.journal.commit(Carried(send.client_msg_id, ME, "unknown", 1))
        rig.begin()
        await rig.queue("@carol", "0")
        await rig.until_settled(1)
        assert rig.sender.retry(await rig.row("@bob/1")) is not None
        await rig.queue("@carol", "1")
        await rig.until_settled(2)
        assert rig.far_end.texts("@bob") == []
        assert rig.sender.drop(await rig.row("@bob/0")) is not None
        await rig.until_settled(5)
        assert rig.far_end.texts("@bob") == ["1", "2"]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_answered_every_send_of_every_target_arrives_once_and_in_order(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    texts = [str(number) for number in range(15)]
    targets = ["@ann", "@bob", "@carol", "grp_1"]
    async with outbox(tmp_path, settings=msgspec.structs.replace(QUICK, group_rate_per_s=1_000.0)) as rig:

        async def stored_and_cut() -> AgentdError:
            target, text = rig.far_end.asked[-1]
            to = {"to": target} if target.startswith("@") else {"conversation_id": target}
            sent = wire.SendRequest(client_msg_id=f"{target}/{text}", content=wire.MessageContent(text=text), **to)
            rig.far_end.store(sent, target)
            return OutcomeUnknown("cut after it was stored")

        async def asks_for_the_reply_that_comes() -> Response:
            rig.sender.heard_from("@ann")
            return AWAITING_REPLY

        trouble: list[Step] = [
            refusal(503, "INTERNAL_ERROR"),
            refusal(409, "IDEMPOTENT_IN_PROGRESS"),
            refusal(429, "RATE_LIMITED", retry_after="0.01"),
            Unavailable("no route"),
            OutcomeUnknown("cut before it was stored"),
            WireViolation("an answer that nobody can read"),
            BACKLOGGED,
        ]
        for target in targets:
            for _ in texts:
                rig.far_end.plan(target, *chance.sample(trouble, chance.choice([0, 0, 1, 2])))
                if target == "@ann" and chance.random() < 0.2:
                    rig.far_end.plan(target, asks_for_the_reply_that_comes)
                if chance.random() < 0.2:
                    rig.far_end.plan(target, stored_and_cut, refusal(503, "INTERNAL_ERROR"))
                rig.far_end.plan(target, went_through)
        rig.begin()
        for text in texts:
            for target in chance.sample(targets, len(targets)):
                await rig.queue(target, text)
            if chance.random() < 0.1:
                await rig.restart()
        # One that a restart caught between its answer and the disk settles twice.
        await rig.far_end.until(
            lambda: len({each.client_msg_id for each in rig.far_end.settled}) == len(texts) * len(targets)
        )
        for target in targets:
            assert once(rig.far_end.texts(target)) == texts
            assert [key for key in rig.far_end.stored if key.startswith(f"{target}/")] == [
                f"{target}/{text}" for text in texts
            ]
        assert rig.sender.waiting == 0


async def went_through() -> None:
    """An answer as it should be."""


async def test_a_sender_at_rest_has_the_answers_to_what_has_left_and_lets_nothing_leave(rig: Rig) -> None:
    released = asyncio.Event()

    async def hang() -> None:
        await released.wait()

    rig.far_end.plan("@slow", hang)
    await rig.queue("@slow", "1", "2")
    await rig.far_end.until(lambda: rig.far_end.texts("@slow") == ["1"])
    await rig.sender.rest(0.02)
    assert (await rig.row("@slow/1")).send.state == "ready"  # it took too long
    resting = asyncio.ensure_future(rig.sender.rest(20.0))
    await asyncio.sleep(0.02)
    assert not resting.done()
    released.set()
    await resting
    assert (await rig.row("@slow/1")).send.state == "sent"
    await rig.queue("@bob", "1")
    await asyncio.sleep(0.02)
    assert (rig.far_end.texts("@slow"), rig.far_end.texts("@bob")) == (["1"], [])
