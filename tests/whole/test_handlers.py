"""Handlers that block, hang, fail and fall behind, in a daemon that is connected to a hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd import config

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

PRELUDE = """
import asyncio
import time
from pathlib import Path

import msgspec

from agentd.plugin import Context, GiveUp, Message, Plugin


class Config(msgspec.Struct, frozen=True):
    folder: str


plugin = Plugin("trial", config=Config)


def note(ctx, *words):
    with open(Path(ctx.config.folder) / "notes", "a") as notes:
        print(*words, file=notes)


def released(ctx):
    return (Path(ctx.config.folder) / "release").exists()


"""

COUNTER = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("greeter")

@plugin.on(Message, text=r"^hello\\b")
async def greet(message: Message, ctx: Context) -> None:
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    ctx.reply(f"hello number {count}")
"""

ASYNC_STUCK = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    note(ctx, "begin", message.sender, message.text)
    while message.sender == "stuck" and not released(ctx):
        await asyncio.sleep(0.01)
    note(ctx, "end", message.sender, message.text)
"""

THREAD_STUCK = """
@plugin.on(Message)
def handle(message: Message, ctx: Context[Config]) -> None:
    note(ctx, "begin", message.sender, message.text)
    while message.sender == "stuck" and not released(ctx):
        time.sleep(0.01)
    note(ctx, "end", message.sender, message.text)
"""

LONGER_THAN_A_PING = """
@plugin.on(Message, sender="slow-coroutine")
async def wait(message: Message, ctx: Context[Config]) -> None:
    await asyncio.sleep(4)
    note(ctx, message.sender, message.text)


@plugin.on(Message, sender="slow-thread")
def block(message: Message, ctx: Context[Config]) -> None:
    time.sleep(4)
    note(ctx, message.sender, message.text)


@plugin.on(Message, sender="peer-*")
async def pass_by(message: Message, ctx: Context[Config]) -> None:
    note(ctx, message.sender, message.text)
"""

BLOCKS_THE_LOOP = """
@plugin.on(Message)
async def block(message: Message, ctx: Context[Config]) -> None:
    time.sleep(1.0)
    note(ctx, message.sender, message.text)
"""

FAILS = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    note(ctx, message.sender, message.text)
    ctx.reply(f"answer to {message.text}")
    if message.text == "bad":
        raise ValueError("of no use")
    if message.text == "hopeless":
        raise GiveUp("not for me")
    if message.text == "endless":
        await asyncio.Event().wait()
"""

GATED = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    while not released(ctx):
        await asyncio.sleep(0.01)
    note(ctx, message.sender, message.text)
"""


class Trial:
    """A plugin under test, and the file in which it notes what it does."""

    def __init__(self, rig: Rig, source: str, **settings: Any) -> None:
        self.rig = rig
        self._folder = rig.folder
        (rig.folder / "trial.py").write_text(source)
        given = {"folder": str(rig.folder)} if source.startswith(PRELUDE) else {}
        rig.plugin = {"use": "./trial.py", "config": given, **settings}
        rig.identity("agent")

    def peer(self, handle: str) -> str:
        self.rig.hub.create_agent(handle)
        return handle

    def release(self) -> None:
        (self._folder / "release").touch()

    def notes(self) -> list[str]:
        file = self._folder / "notes"
        return file.read_text().splitlines() if file.exists() else []

    async def until_noted(self, count: int, timeout_s: float = 20.0) -> list[str]:
        await self.rig.until(lambda: len(self.notes()) >= count, timeout_s)
        return self.notes()

    def answers(self, peer: str) -> list[str]:
        """What this peer was told, in order."""
        return self.rig.answers(peer)

    def status(self) -> dict[str, Any]:
        return self.rig.status()[0]


@pytest.mark.parametrize("source", [ASYNC_STUCK, THREAD_STUCK], ids=["coroutine", "thread"])
async def test_a_handler_that_blocks_its_lane_delays_no_other_conversation(rig: Rig, source: str) -> None:
    trial = Trial(rig, PRELUDE + source)
    stuck, others = trial.peer("stuck"), [trial.peer(f"peer-{number}") for number in range(10)]
    await rig.start()
    rig.hub.post(stuck, "agent", "1", "2")
    await rig.until(lambda: "begin stuck 1" in trial.notes())
    for peer in others:
        rig.hub.post(peer, "agent", "1", "2", "3")
    await trial.until_noted(1 + 2 * 3 * len(others))
    while_stuck = trial.notes()
    assert [line for line in while_stuck if "stuck" in line] == ["begin stuck 1"]
    for peer in others:
        assert [line.split()[2] for line in while_stuck if line.startswith(f"end {peer} ")] == ["1", "2", "3"]
    trial.release()
    notes = await trial.until_noted(4 + 2 * 3 * len(others))
    assert [line for line in notes if "stuck" in line] == [
        "begin stuck 1",
        "end stuck 1",
        "begin stuck 2",
        "end stuck 2",
    ]


async def test_handlers_that_block_for_longer_than_a_ping_may_take_delay_no_pong_and_no_other_conversation(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(ping_interval_s=1.0, pong_timeout_s=1.0) as rig:
        link = config.Link(ping_interval_s=1.0, ping_timeout_s=1.0, backoff_first_s=0.05)
        rig.settings = msgspec.structs.replace(rig.settings, link=link)
        trial = Trial(rig, PRELUDE + LONGER_THAN_A_PING)
        slow = [trial.peer("slow-coroutine"), trial.peer("slow-thread")]
        peers = [trial.peer(f"peer-{number}") for number in range(5)]
        await rig.start()
        for peer in slow:
            rig.hub.post(peer, "agent", "takes long")
        posted, pongs = 0, []

        def both_are_done() -> bool:
            nonlocal posted
            notes = trial.notes()
            if posted == len(notes) and not any(peer in line for line in notes for peer in slow):
                posted += len(peers)
                for peer in peers:
                    rig.hub.post(peer, "agent", f"round {posted}")
            pongs.append(trial.status()["last_pong_age_s"] or 0.0)
            return all(f"{peer} takes long" in notes for peer in slow)

        await rig.until(both_are_done, timeout_s=30)
        assert posted > 20 * len(peers), "round after round went by meanwhile"
        assert max(pongs) < 2.0, "interval and deadline of a ping"
        assert trial.status()["reconnects"] == 0
        assert rig.states() == ["live"]


async def test_a_handler_that_blocks_the_event_loop_is_noticed_with_its_stack_and_plugin(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(rig, PRELUDE + BLOCKS_THE_LOOP)
    peer = trial.peer("peer")
    await rig.start()
    with caplog.at_level(logging.WARNING, logger="agentd.host.stalls"):
        rig.hub.post(peer, "agent", "hello")
        await trial.until_noted(1)
        await rig.until(lambda: any("runs again" in line for line in caplog.messages))
    noticed = next(line for line in caplog.messages if line.startswith("event loop blocked"))
    assert "plugin plugin, handler block" in noticed
    assert "trial.py" in noticed
    assert "time.sleep(1.0)" in noticed
    assert rig.daemon is not None
    assert rig.daemon.operations.status()["loop_stalls"] >= 1


@pytest.mark.parametrize(
    ("text", "attempts", "told"),
    [
        ("bad", 1, "ValueError: of no use"),
        ("bad", 2, "ValueError: of no use"),
        ("hopeless", 5, "not for me"),
        ("endless", 1, "did not return within"),
    ],
)
async def test_a_failing_handler_makes_a_dead_letter_and_the_lane_goes_on(
    rig: Rig, text: str, attempts: int, told: str
) -> None:
    trial = Trial(rig, PRELUDE + FAILS, attempts=attempts, timeout_s=0.5)
    peer = trial.peer("peer")
    await rig.start()
    rig.hub.post(peer, "agent", "good", text, "good again")
    await rig.until(lambda: len(trial.answers(peer)) == 2)
    tried = 1 if text == "hopeless" else attempts
    assert trial.notes() == ["peer good", *[f"peer {text}"] * tried, "peer good again"]
    assert trial.answers(peer) == ["answer to good", "answer to good again"], "a turn that failed says nothing"
    await rig.until(lambda: trial.status()["pending"] == 0)
    assert (trial.status()["dead"], trial.status()["handled"]) == (1, trial.status()["journaled"])
    dead = await rig._journal.dead("agent", 10)
    assert [(each.plugin, each.attempts) for each in dead] == [("plugin", tried)]
    assert told in dead[0].error + dead[0].traceback
    await rig.stop()
    await rig.start()
    assert trial.status()["dead"] == 1
    assert trial.notes() == ["peer good", *[f"peer {text}"] * tried, "peer good again"], "nor is it tried again"


async def test_a_plugins_state_survives_a_restart_of_the_daemon(rig: Rig) -> None:
    trial = Trial(rig, COUNTER)
    peer, other = trial.peer("peer"), trial.peer("other")
    await rig.start()
    rig.hub.post(peer, "agent", "hello", "nothing to count", "hello again")
    await rig.until(lambda: len(trial.answers(peer)) == 2)
    await rig.stop()
    rig.hub.post(peer, "agent", "hello after the restart")
    await rig.start()
    rig.hub.post(other, "agent", "hello")
    await rig.until(lambda: len(trial.answers(peer)) == 3 and len(trial.answers(other)) == 1)
    assert trial.answers(peer) == ["hello number 1", "hello number 2", "hello number 3"]
    assert trial.answers(other) == ["hello number 1"], "each conversation has its own"


async def test_events_that_were_not_handled_before_a_stop_are_handled_after_it(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=config.Dispatch(drain_timeout_s=0.1, lane_memory=4))
    trial = Trial(rig, PRELUDE + GATED)
    peers = [trial.peer(f"peer-{number}") for number in range(3)]
    texts = [str(number) for number in range(20)]
    await rig.start()
    for peer in peers:
        rig.hub.post(peer, "agent", *texts)
    await rig.until(lambda: trial.status()["journaled"] == 60)
    await rig.until(lambda: rig.hub.undelivered("agent") == 0)
    await rig.stop()
    assert trial.notes() == []
    trial.release()
    await rig.start()
    notes = await trial.until_noted(60)
    for peer in peers:
        assert [line.split()[1] for line in notes if line.startswith(f"{peer} ")] == texts
    await rig.until(lambda: trial.status()["pending"] == 0)


async def test_handlers_that_fall_behind_leave_mail_with_the_server_and_the_connection_stays(rig: Rig) -> None:
    intake = msgspec.structs.replace(rig.settings.intake, undispatched_high=50, undispatched_low=10)
    link = config.Link(ping_interval_s=0.3, ping_timeout_s=0.3, backoff_first_s=0.05)
    rig.settings = msgspec.structs.replace(rig.settings, intake=intake, link=link)
    trial = Trial(rig, PRELUDE + GATED)
    peers = [trial.peer(f"peer-{number}") for number in range(6)]
    texts = [str(number) for number in range(100)]
    await rig.start()
    for peer in peers:
        rig.hub.post(peer, "agent", *texts[:10])
    await rig.until(lambda: rig.states() == ["throttled"])
    for peer in peers:
        rig.hub.post(peer, "agent", *texts[10:])
    await rig.until(lambda: trial.status()["shed"] == 540)
    assert (trial.status()["journaled"], trial.status()["pending"]) == (60, 60)
    await rig.until(lambda: rig.hub.undelivered("agent") == 540)
    assert "too far behind" in trial.status()["state_reason"]
    pong_age = trial.status()["last_pong_age_s"]
    await rig.until(lambda: trial.status()["last_pong_age_s"] < pong_age or pong_age == 0.0)
    trial.release()
    notes = await trial.until_noted(600)
    for peer in peers:
        assert [line.split()[1] for line in notes if line.startswith(f"{peer} ")] == texts
    await rig.until(lambda: rig.hub.undelivered("agent") == 0 and rig.states() == ["live"])
    assert trial.status()["reconnects"] == 0
    assert trial.status()["gaps_open"] == 0
