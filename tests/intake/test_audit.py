"""The tail audit against a scripted platform: what it reads, what it makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentd.core.sequencer import Refetch
from agentd.errors import AgentdError, CredentialsRefused, Unavailable
from agentd.intake import Audit, Drain, Questions
from agentd.wire.platform import Request, Response
from tests.intake.rig import Bench, frame


class Server:
    """Answers by the end of the path."""

    def __init__(self) -> None:
        self.sync: list[Any] = []
        self.conversations: list[Any] = []
        self.history: list[Any] = []
        self.asked: list[str] = []
        self.failing: dict[str, AgentdError] = {}
        self.muted: set[str] = set()

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.path)
        if (failure := self.failing.get(request.path)) is not None:
            raise failure
        if request.path.endswith("/sync"):
            return _answer(self.sync if "after" not in request.query else [])
        if request.path == "/v1/conversations":
            return _answer(self.conversations)
        if request.path.startswith("/v1/mutes/"):
            return Response(status=200 if request.path in self.muted else 404, headers={}, body=b"{}")
        after = int(request.query.get("after_seq", -1))
        return _answer([row for row in self.history if row["seq"] > after][: int(request.query["limit"])])


def _answer(rows: list[Any]) -> Response:
    return Response(status=200, headers={}, body=msgspec.json.encode(rows))


def row(seq: int, *, created_at: str = "", **fields: Any) -> dict[str, Any]:
    payload = msgspec.json.decode(frame(seq))["payload"]
    return {**payload, "created_at": created_at, "delivery_id": None, **fields}


class Audited(Bench):
    """An intake with an audit over a scripted server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr("agentd.intake.audit._PUSH_GRACE_S", 0.01)
        self.server = Server()
        self.deaf: list[int] = []
        questions = Questions(self.intake, self.server, on_credentials=lambda _: None)
        drain = Drain(self.intake, self.server, on_credentials=lambda _: None)
        self.audit = Audit(
            self.intake, drain, questions, self.server, on_deaf=self.deaf.append, on_credentials=lambda _: None
        )

    async def once(self) -> int:
        auditing = asyncio.create_task(self.audit.once())
        while not auditing.done():
            await self.journal.sync()
        return await auditing


@pytest.fixture
async def audited(monkeypatch: pytest.MonkeyPatch) -> Audited:
    made = Audited(monkeypatch)
    await made.intake.load()
    return made


async def test_an_audit_that_finds_nothing_says_that_the_connection_hears(audited: Audited) -> None:
    audited.push(1, 2)
    audited.server.history = [row(1), row(2)]
    assert await audited.once() == 0
    assert audited.deaf == [0]


async def test_an_unknown_conversation_with_unread_seqs_is_met_at_the_oldest_of_them(audited: Audited) -> None:
    audited.server.conversations = [{"id": "conv_9", "oldest_unread_seq": 3, "newest_unread_seq": 5}]
    assert await audited.once() == 2
    await asyncio.sleep(0.05)
    assert audited.questions == [Refetch("conv_9", 1, 3, 6)]


async def test_a_known_conversation_with_a_higher_unread_seq_has_lost_its_last_messages(audited: Audited) -> None:
    audited.push(1, 2)
    audited.server.history = [row(1), row(2), row(3), row(4)]
    audited.server.conversations = [{"id": "conv_1", "oldest_unread_seq": 3, "newest_unread_seq": 4}]
    assert await audited.once() == 1
    await asyncio.sleep(0.05)
    assert audited.questions == [Refetch("conv_1", 1, 3, 5)]


async def test_mail_that_nothing_newer_was_pushed_after_means_deaf(audited: Audited) -> None:
    audited.push(1)
    audited.server.history = [row(1)]
    audited.server.sync = [row(2, created_at="2026-01-01T00:00:01Z", delivery_id="del_2")]
    assert await audited.once() == 1
    assert audited.deaf == [1]


@pytest.mark.parametrize(
    ("muted", "unheard"), [("agent/bob", 0), ("conversation/conv_1", 0), ("agent/carol", 2), ("conversation/conv_2", 2)]
)
async def test_muted_mail_says_nothing_of_the_connection(audited: Audited, muted: str, unheard: int) -> None:
    audited.push(1)
    audited.server.history = [row(1)]
    audited.server.sync = [row(seq, created_at=f"2026-01-01T00:00:0{seq}Z", delivery_id=f"del_{seq}") for seq in (2, 3)]
    audited.server.muted.add(f"/v1/mutes/{muted}")
    assert await audited.once() == 2
    assert audited.deaf == [unheard]


async def test_one_lost_push_on_a_connection_that_goes_on_pushing_is_not_deafness(audited: Audited) -> None:
    audited.push(1)
    audited.server.history = [row(1)]
    audited.server.sync = [row(2, created_at="2026-01-01T00:00:01Z", delivery_id="del_2")]
    newer = {"type": "message.new", "payload": row(1, created_at="2026-01-01T00:00:05Z", conversation_id="conv_2")}
    audited.intake.frame(msgspec.json.encode(newer))
    assert await audited.once() == 1
    assert audited.deaf == [0]


async def test_mail_whose_push_comes_a_moment_later_was_not_found_by_the_audit(audited: Audited) -> None:
    audited.push(1)
    audited.server.history = [row(1)]
    audited.server.sync = [row(2, created_at="2026-01-01T00:00:01Z", delivery_id="del_2")]
    auditing = asyncio.create_task(audited.audit.once())
    while not audited.intake.unpushed:
        await audited.journal.sync()
    audited.push(2)
    while not auditing.done():
        await audited.journal.sync()
    assert await auditing == 0
    assert audited.deaf == [0]


async def test_a_row_at_the_mark_with_another_id_starts_a_new_epoch(audited: Audited) -> None:
    audited.push(1, 2)
    audited.journal.recorded = {(1, 1): "msg_1", (1, 2): "msg_2"}
    audited.server.history = [row(1, id="new_1"), row(2, id="new_2")]
    await audited.once()
    assert audited.intake.sequencer.lines["conv_1"].epoch == 2
    assert audited.intake.counters.resets == 1


async def test_a_numbering_that_has_not_come_as_far_as_the_mark_is_told_by_its_newest_row(audited: Audited) -> None:
    audited.push(1, 2, 3)
    audited.journal.recorded = {(1, 1): "msg_1", (1, 2): "msg_2", (1, 3): "msg_3"}
    audited.server.history = [row(1, id="new_1")]
    await audited.once()
    assert audited.intake.sequencer.lines["conv_1"].epoch == 2


async def test_a_hidden_last_message_is_not_taken_for_a_reset(audited: Audited) -> None:
    audited.push(1, 2, 3)
    audited.journal.recorded = {(1, 1): "msg_1", (1, 2): "msg_2", (1, 3): "msg_3"}
    audited.server.history = [row(1), row(2)]
    await audited.once()
    assert audited.intake.sequencer.lines["conv_1"].epoch == 1


async def test_an_audit_that_cannot_read_changes_nothing(audited: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    audited.push(1)

    async def fails(request: Request) -> Response:
        raise Unavailable("not now")

    monkeypatch.setattr(audited.audit, "_perform", fails)
    with pytest.raises(Unavailable):
        await audited.once()
    assert audited.deaf == []
    assert audited.audit.last_audit is None


async def test_a_conversation_that_cannot_be_read_keeps_no_other_from_being_audited(audited: Audited) -> None:
    audited.intake.settings = msgspec.structs.replace(audited.intake.settings, audit_conversations=2)
    audited.server.history = [row(1)]
    audited.server.failing["/v1/messages/conv_1"] = Unavailable("500 INTERNAL_ERROR")
    for conversation in ("conv_1", "conv_2", "conv_3", "conv_4"):
        audited.push(1, conversation=conversation)
    await audited.once()
    await audited.once()
    for conversation in ("conv_2", "conv_3", "conv_4"):
        assert f"/v1/messages/{conversation}" in audited.server.asked
    assert audited.audit.last_audit is not None
    assert audited.deaf == [0, 0]


async def test_an_audit_that_can_read_no_conversation_is_none(audited: Audited) -> None:
    for conversation in ("conv_1", "conv_2"):
        audited.server.failing[f"/v1/messages/{conversation}"] = Unavailable("500 INTERNAL_ERROR")
        audited.push(1, conversation=conversation)
    with pytest.raises(Unavailable):
        await audited.once()
    assert audited.audit.last_audit is None


async def test_a_key_that_is_refused_for_a_history_is_not_taken_for_a_conversation_that_is_gone(
    audited: Audited,
) -> None:
    audited.push(1)
    audited.push(1, conversation="conv_2")
    audited.server.failing["/v1/messages/conv_1"] = CredentialsRefused(401, "UNAUTHORIZED")
    with pytest.raises(CredentialsRefused):
        await audited.once()


async def test_news_behind_a_row_that_cannot_be_read_is_found(audited: Audited) -> None:
    audited.push(1, 2)
    audited.server.history = [row(1), row(2, id=7), row(3)]
    assert await audited.once() == 1
    assert audited.intake.sequencer.lines["conv_1"].top == 3


def pushed(seq: int, created_at: str) -> bytes:
    return msgspec.json.encode({"type": "message.new", "payload": row(seq, created_at=created_at)})


async def test_an_identity_that_leaves_messages_with_the_server_is_not_deaf_and_fetches_none_of_them(
    audited: Audited,
) -> None:
    audited.push(1)
    audited.intake.shedding = True
    audited.intake.frame(pushed(2, "2026-01-01T00:00:01Z"))
    audited.server.history = [row(1), row(2, created_at="2026-01-01T00:00:01Z")]
    audited.server.conversations = [{"id": "conv_1", "oldest_unread_seq": 2, "newest_unread_seq": 2}]
    await audited.once()
    audited.intake.apply(audited.intake.sequencer.wake(asyncio.get_running_loop().time() + 10))
    assert audited.questions == []
    assert sum(audited.deaf) == 0


async def test_what_was_pushed_and_left_with_the_server_while_an_audit_ran_does_not_make_it_deaf(
    audited: Audited,
) -> None:
    audited.push(1)
    later = row(2, created_at="2026-01-01T00:00:01Z")
    audited.server.history = [row(1), later]
    answer = audited.server.__call__

    async def sheds_meanwhile(request: Request) -> Response:
        if request.path == "/v1/conversations":
            audited.intake.shedding = True
            audited.intake.frame(pushed(2, later["created_at"]))
        return await answer(request)

    audited.audit._perform = sheds_meanwhile
    await audited.once()
    assert sum(audited.deaf) == 0


async def test_own_words_of_another_client_which_nobody_pushes_back_make_no_connection_deaf(audited: Audited) -> None:
    audited.push(1)
    audited.server.history = [row(1), row(2, sender="me", created_at="2026-01-01T00:00:01Z")]
    await audited.once()
    assert audited.deaf == [0]
    assert audited.intake.sequencer.lines["conv_1"].top == 2
