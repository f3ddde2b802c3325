"""The process that takes over, before a control socket and a line whose other end is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.control.api import ControlServer, HandOverRequest
from agentd.control.client import Client
from agentd.control.refusal import ControlError
from agentd.core.events import Content, Send, Sent
from agentd.dispatcher import Turn
from agentd.handover import arriving, messages
from agentd.handover.arriving import Arrival, NotHandedOver
from agentd.handover.line import Line
from agentd.host.shipped import TurnOut
from tests.conftest import ScriptedDaemon

TURN = Turn("events", "echo", "alice", 3, 10, 12)
OVERRUN = Turn("overrun", "echo", conversation=4)


class Predecessor(ScriptedDaemon):
    """Hands over what it is told to."""

    def __init__(self, *first: msgspec.Struct) -> None:
        super().__init__()
        self.first = first
        self.heard: list[Any] = []
        self.line = Line(msgspec.msgpack.Decoder(messages.ToPredecessor).decode, self._take)
        self.news = asyncio.Event()

    def _take(self, message: Any) -> None:
        self.heard.append(message)
        self.news.set()

    async def hand_over(self, wanted: HandOverRequest) -> dict[str, Any]:
        if self.error:
            raise self.error
        await asyncio.get_running_loop().create_unix_connection(lambda: self.line, wanted.socket)
        for message in self.first:
            self.line.tell(message)
        return {"version": "0.1.0", "pid": os.getpid()}

    async def until_heard(self, *wanted: Any) -> None:
        async with asyncio.timeout(10):
            while self.heard != list(wanted):
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def served(folder: Path, predecessor: Predecessor) -> AsyncIterator[Predecessor]:
    server = ControlServer(predecessor, [folder / "control.sock"])
    await server.start()
    try:
        yield predecessor
    finally:
        predecessor.line.close()
        await server.close()


async def asked(folder: Path) -> Arrival:
    arrival = await Arrival.ask(folder / "control.sock", folder, 1, "")
    assert arrival is not None
    return arrival


async def test_where_nobody_answers_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    assert await Arrival.ask(tmp_path / "control.sock", tmp_path, 1, "") is None


async def test_a_refusal_is_told_with_its_remedy(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor()) as predecessor:
        predecessor.error = ControlError(409, "NOT_HANDED_OVER", "it is stopping", "wait for its end")
        with pytest.raises(NotHandedOver, match="it is stopping; wait for its end"):
            await asked(tmp_path)


async def test_a_process_that_does_not_answer_is_not_taken_for_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "Client", partial(Client, patience_s=0.05))
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "control.sock"))
        deaf.listen()
        with pytest.raises(NotHandedOver, match="does not answer in time"):
            await asked(tmp_path)


async def test_what_is_called_off_is_told_with_the_reason(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor(messages.CalledOff("the disk takes no commits"))):
        with pytest.raises(NotHandedOver, match="the disk takes no commits"):
            await asked(tmp_path)


async def test_no_socket_is_left_behind_and_those_of_dead_processes_are_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "hand-over.4194305.sock"))  # above what a pid can be
    async with served(tmp_path, Predecessor(messages.Released([]))):
        arrival = await asked(tmp_path)
        assert list(tmp_path.glob("hand-over.*")) == []
        arrival.close()


async def test_the_end_of_a_turn_is_heard_once_and_of_one_that_is_not_listed_never(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor(messages.Released([(1, TURN)]))) as predecessor:
        arrival = await asked(tmp_path)
        assert [each.turn for each in arrival.turns] == [TURN]
        assert arrival.open == 1
        for id_, said in ((7, 1), (1, 2), (1, 3)):
            predecessor.line.tell(messages.Ended(id_, TurnOut(said=said), ""))
        over = await arrival.turns[0].over
        await predecessor.until_heard(messages.Heard(1))
        assert over is not None
        assert over.out.said == 2
        assert arrival.open == 0
        arrival.close()


async def test_a_line_that_ends_gives_every_open_turn_back(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor(messages.Released([(1, TURN), (2, OVERRUN)]))) as predecessor:
        arrival = await asked(tmp_path)
        predecessor.line.close()
        assert [await each.over for each in arrival.turns] == [None, None]
        arrival.close()


async def test_a_thread_that_runs_on_holds_its_turn_until_it_ends(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor(messages.Released([(1, TURN)]))) as predecessor:
        arrival = await asked(tmp_path)
        predecessor.line.tell(messages.Ended(1, TurnOut(overruns=True), "handle"))
        over = await arrival.turns[0].over
        assert over is not None
        assert over.overrun is not None
        assert not over.overrun.done()
        assert arrival.open == 1
        predecessor.line.tell(messages.OverrunEnded(1))
        await over.overrun
        assert arrival.open == 0
        arrival.close()


async def test_what_turns_ask_is_answered_and_what_goes_wrong_comes_back_as_it_was(tmp_path: Path) -> None:
    async def state_get(plugin: str, conversation: int, key: str) -> bytes | None:
        return f"{plugin} {conversation} {key}".encode()

    async def send_now(send: Send) -> Sent:
        raise ValueError("not today")

    async with served(tmp_path, Predecessor(messages.Released([(1, TURN)]))) as predecessor:
        arrival = await asked(tmp_path)
        predecessor.line.tell(messages.AskState(5, "echo", 3, "count"))
        arrival.answers(state_get, send_now)
        await predecessor.until_heard(messages.Answer(5, b"echo 3 count"))
        send = Send(identity="alice", target="@bob", content=Content(text="x"), client_msg_id="k")
        predecessor.line.tell(messages.AskSend(6, msgspec.json.encode(send)))
        async with asyncio.timeout(10):
            while len(predecessor.heard) < 2:
                await asyncio.sleep(0.01)
        fault = predecessor.heard[1].fault
        assert (fault.name, fault.text) == ("ValueError", "not today")
        arrival.close()


async def test_the_journal_is_not_written_to_while_a_process_that_does_not_listen_lives(tmp_path: Path) -> None:
    async with served(tmp_path, Predecessor(messages.Released([]))) as predecessor:
        arrival = await asked(tmp_path)
        predecessor.line.close()
        await arrival._line.ended
        with pytest.raises(NotHandedOver, match="does not listen any more"):
            await arrival.taken()
        arrival.close()
