"""Calls of `ctx.api` carry keys that a repeated turn repeats, and end with the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agentd import apis
from agentd.core.events import Message, Typing
from agentd.errors import Unavailable
from agentd.host.api import Carrier, NoChanges, Port
from agentd.host.context import TurnContext
from agentd.host.state import PluginState
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat.calls import AgentChatCalls
from agentd.wire.platform import Request, Response, Transfer


class Kept:
    """A port that keeps what it was asked, and answers with what stands ready."""

    platform = "agentchat"

    def __init__(self, *answers: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.answers = list(answers)

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        self.asked.append((name, dict(arguments), key))
        return self.answers.pop(0) if self.answers else None

    @property
    def keys(self) -> list[str | None]:
        return [key for _, _, key in self.asked]


class Home:
    """A plugin as far as a turn knows it."""

    name = "greeter"
    config = None
    serves = frozenset({"me"})

    def __init__(self, port: Port | None) -> None:
        self.api_of = {"me": port}.get
        self.state = PluginState(self.name, self.read)

    async def read(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return None


def turn(port: Port | None, event: Any = None, **more: Any) -> TurnContext[Any]:
    plain = Message(identity="me", conversation="conv_1", seq=1, id="msg_1", sender="bob", text="hello")
    home: Any = Home(port)
    return TurnContext(home, event or plain, 7, 1, **more)


async def test_a_repeated_turn_gives_each_changing_call_the_key_it_had_whatever_it_reads_meanwhile() -> None:
    port = Kept()
    first, again, replay = turn(port), turn(port), turn(port, again="replay 1")
    await first.api.contacts.add("@bob")
    await first.api.contacts.list()
    await first.api.contacts.note("@bob", "met")
    await again.api.contacts.list()
    await again.api.contacts.add("@bob")
    await again.api.contacts.note("@bob", "met")
    await replay.api.contacts.add("@bob")
    one, none, two = port.keys[:3]
    assert none is None
    assert port.keys[3:6] == [None, one, two]
    assert port.keys[6] not in (one, two)
    assert one is not None
    assert one.endswith("-a0")


async def test_keys_are_given_in_the_order_of_the_calls_not_of_their_awaiting() -> None:
    port = Kept()
    ctx = turn(port)
    first, second = ctx.api.contacts.add("a"), ctx.api.contacts.add("b")
    await second
    await first
    assert [(arguments["handle"], str(key)[-3:]) for _, arguments, key in port.asked] == [("b", "-a1"), ("a", "-a0")]


async def test_a_signal_is_never_repeated_so_its_calls_have_keys_of_their_own() -> None:
    port = Kept()
    typing = Typing(identity="me", conversation="c", sender="bob", active=True)
    for _ in range(2):
        await turn(port, typing).api.contacts.add("bob")
    assert len(set(port.keys)) == 2


async def test_what_a_turn_is_about_is_on_disk_before_it_changes_anything() -> None:
    port, happened = Kept(), []

    class Owner:
        def got_on(self, ctx: Any, noted: bytes) -> None:
            raise AssertionError

        async def says_now(self, ctx: Any) -> None:
            happened.append(len(port.asked))

    ctx = turn(port, owner=Owner())
    await ctx.api.contacts.list()
    await ctx.api.contacts.add("bob")
    assert happened == [1]


async def test_arguments_are_checked_where_the_author_made_the_call() -> None:
    ctx = turn(Kept())
    unchecked: Any = ctx.api.contacts
    with pytest.raises(TypeError, match="handle"):
        unchecked.add()
    name, group = "ad", "contact"
    with pytest.raises(AttributeError, match=r"no ctx\.api\.contacts\.ad; there is list, get, add"):
        getattr(ctx.api.contacts, name)
    with pytest.raises(AttributeError, match=r"agentchat has no ctx\.api\.contact; it has profile"):
        getattr(ctx.api, group)
    assert ctx.api.platform == "agentchat"


async def test_a_turn_that_has_ended_calls_nothing() -> None:
    port = Kept(("row",))
    ctx = turn(port)
    api = ctx.api
    rows = api.directory.search("bo")
    ctx.end()
    with pytest.raises(RuntimeError, match="this turn has ended"):
        api.contacts.list()
    with pytest.raises(RuntimeError, match="this turn has ended"):
        await anext(rows)
    assert port.asked == []


async def test_an_identity_whose_platform_offers_nothing_says_so() -> None:
    with pytest.raises(RuntimeError, match="the platform of me offers plugins no calls"):
        _ = turn(None).api


async def test_a_search_goes_on_to_an_empty_page_however_short_the_others_are() -> None:
    bo, bob, boy = (apis.DirectoryRow(handle=handle) for handle in ("bo", "bob", "boy"))
    port = Kept((bo, bob), (boy,), ())
    assert [row async for row in turn(port).api.directory.search("bo")] == [bo, bob, boy]
    assert [arguments["offset"] for _, arguments, _ in port.asked] == [0, 2, 3]


async def test_a_rehearsal_reads_and_changes_nothing() -> None:
    port = Kept()
    ctx = turn(NoChanges(port))
    await ctx.api.contacts.list()
    for call in (ctx.api.contacts.add("bob"), ctx.api.conversations.typing("c")):
        with pytest.raises(RuntimeError, match="is not made in a rehearsal"):
            await call
    assert [name for name, _, _ in port.asked] == ["contacts.list"]


class ScriptedLine:
    """A way to the platform on which these answers come back, in order."""

    def __init__(self, *answers: Response, connected: bool = True) -> None:
        self.answers = list(answers)
        self.went: list[Request | Transfer | bytes] = []
        self.connected = connected

    async def perform(self, request: Request) -> Response:
        self.went.append(request)
        return self.answers.pop(0)

    async def transfer(self, transfer: Transfer) -> Response:
        self.went.append(transfer)
        return self.answers.pop(0)

    def say(self, frame: bytes) -> bool:
        self.went.append(frame)
        return self.connected


def carrier(line: ScriptedLine) -> Carrier:
    return Carrier(AgentChatCalls(AgentChat("me", "https://chat.example", str, "me")), line)


RUNNING = Response(status=409, headers={}, body=b'{"code":"IDEMPOTENT_IN_PROGRESS","message":""}', retry_after_s=0.01)
STORED = Response(status=201, headers={}, body=b'{"attachment_id":"att_1","upload_url":"https://store.example/x"}')
DONE = Response(status=200, headers={}, body=b"")


async def test_a_first_attempt_that_still_runs_is_waited_for_under_the_same_key() -> None:
    line = ScriptedLine(RUNNING, RUNNING, DONE)
    await carrier(line).ask("contacts.add", {"handle": "bob"}, "agentd-1-a0")
    assert [each.headers for each in line.went if isinstance(each, Request)] == [{"idempotency-key": "agentd-1-a0"}] * 3


async def test_one_that_never_ends_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.host.api._IN_PROGRESS_MAX_S", 0.05)
    with pytest.raises(Unavailable):
        await carrier(ScriptedLine(*[RUNNING] * 50)).ask("contacts.add", {"handle": "bob"}, "agentd-1-a0")


async def test_an_upload_is_two_steps_and_one_call() -> None:
    line = ScriptedLine(STORED, DONE)
    arguments = {"content": b"hi", "filename": "a", "content_type": "text/plain", "to": "bob"}
    assert await carrier(line).ask("attachments.upload", arguments, None) == "att_1"
    assert [type(each) for each in line.went] == [Request, Transfer]


async def test_a_frame_is_said_and_nobody_waits_for_an_answer() -> None:
    for connected in (True, False):
        line = ScriptedLine(connected=connected)
        assert await carrier(line).ask("conversations.typing", {"conversation": "c"}, None) is connected
        assert len(line.went) == 1


async def test_a_call_can_be_waited_for_from_a_thread() -> None:
    port = Kept("x")
    ctx = turn(port)
    loop: Any = asyncio.get_running_loop()
    home: Any = ctx.home
    home.loop = loop
    assert await asyncio.to_thread(lambda: ctx.wait(ctx.api.contacts.list())) == "x"
