"""An event that no handler can digest, under each policy and through restarts; a deadline that cancels."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

_PICKY = """
import asyncio
from pathlib import Path

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("picky")
notes = Path(__file__).with_name("notes")


def note(*words):
    with notes.open("a") as file:
        print(*words, file=file)


async def count(message, ctx):
    ctx.state.put("count", await ctx.state.get("count", int, 0) + 1)
    ctx.reply("digested")
    note(message.text, ctx.attempt)


@plugin.on(Message, text="^(ordinary|poison)")
async def digest(message: Message, ctx: Context) -> None:
    await count(message, ctx)
    if message.text == "poison":
        raise ValueError("indigestible")


@plugin.on(Message, text="^skipped poison", on_dead="skip")
async def skip(message: Message, ctx: Context) -> None:
    await count(message, ctx)
    raise ValueError("indigestible")


@plugin.on(Message, text="^detached", on_dead="detach", attempts=2)
async def detach(message: Message, ctx: Context) -> None:
    await count(message, ctx)
    note("late" if message.late else "in order")
    if not message.late or "poison" in message.text:
        raise ValueError("indigestible")


@plugin.on(Message, text="^several", batch=10, settle_s=0.2, attempts=2)
async def several(messages: tuple[Message, ...], ctx: Context) -> None:
    note("together", len(messages))
    for message in messages:
        await count(message, ctx)
    if any("poison" in message.text for message in messages):
        raise ValueError("indigestible")


@plugin.on(Message, text="^slow", timeout_s=0.1)
async def wait(message: Message, ctx: Context) -> None:
    await count(message, ctx)
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note("cancelled")
        raise
"""


async def begin(rig: Rig, **settings: Any) -> None:
    (rig.folder / "picky.py").write_text(_PICKY)
    rig.plugin = {"use": str(rig.folder / "picky.py"), **settings}
    dispatch = msgspec.structs.replace(rig.settings.dispatch, retry_first_s=0.05, retry_max_s=1.0)
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=dispatch)
    rig.identity("agent")
    for peer in ("peer", "other"):
        rig.hub.create_agent(peer)
    await rig.start()


def notes(rig: Rig) -> list[str]:
    file = rig.folder / "notes"
    return file.read_text().splitlines() if file.exists() else []


def answered(rig: Rig, peer: str = "peer") -> list[str]:
    """Ids of this peer's messages that were answered, in the order of the answers."""
    rows = rig.hub.ledger(rig.hub.conversation(peer, "agent"))
    return [row.reply_to for row in rows if row.sender == "agent"]


def said(rig: Rig, peer: str = "peer") -> list[str]:
    return [row.id for row in rig.hub.ledger(rig.hub.conversation(peer, "agent")) if row.sender == peer]


async def counted(rig: Rig) -> int:
    [line] = [
        line
        for line in await rig._journal.conversations("agent")
        if line.conversation == rig.hub.conversation("peer", "agent")
    ]
    return int(await rig._journal.state_get("plugin", line.number, "count") or b"0")


def held(rig: Rig) -> list[dict[str, Any]]:
    assert rig.daemon is not None
    found: list[dict[str, Any]] = rig.daemon.operations.status()["plugins"][0]["held"]
    return found


async def test_poison_is_skipped_after_its_attempts_and_leaves_nothing_behind(rig: Rig) -> None:
    await begin(rig, attempts=3)
    rig.hub.post("peer", "agent", "ordinary 1", "poison", "ordinary 2")
    await rig.until(lambda: len(answered(rig)) == 2)
    assert notes(rig) == ["ordinary 1 1", "poison 1", "poison 2", "poison 3", "ordinary 2 1"]
    first, _, last = said(rig)
    assert answered(rig) == [first, last]
    assert await counted(rig) == 2, "what the failed attempts put is nowhere"
    [dead] = await rig._journal.dead("agent", 10)
    assert (dead.attempts, dead.error) == (3, "ValueError: indigestible")


async def test_poison_holds_its_conversation_alone_until_it_is_released(rig: Rig) -> None:
    await begin(rig, attempts=2, on_dead="hold")
    rig.hub.post("peer", "agent", "poison", "ordinary 1", "poison", "ordinary 2")
    await rig.until(lambda: len(held(rig)) == 1)
    rig.hub.post("other", "agent", "ordinary 1", "ordinary 2")
    await rig.until(lambda: answered(rig, "other") == said(rig, "other"))
    assert answered(rig) == []
    assert rig.daemon is not None
    assert rig.daemon.operations.release("plugin", "agent", held(rig)[0]["conversation"]) == 1
    await rig.until(lambda: answered(rig) == said(rig)[1:2] and len(held(rig)) == 1)
    await rig.stop()
    await rig.start()
    await rig.until(lambda: len(held(rig)) == 1)
    assert rig.daemon.operations.release("plugin", "agent", held(rig)[0]["conversation"]) == 1
    await rig.until(lambda: answered(rig) == [said(rig)[1], said(rig)[3]])
    assert await counted(rig) == 2
    assert rig.status()[0]["dead"] == 2


async def test_a_handlers_own_policy_counts_more_than_its_plugins(rig: Rig) -> None:
    await begin(rig, attempts=1, on_dead="hold")
    rig.hub.post("peer", "agent", "skipped poison", "ordinary")
    await rig.until(lambda: answered(rig) == said(rig)[1:])
    assert held(rig) == []


async def test_attempts_are_counted_on_over_a_restart(rig: Rig) -> None:
    await begin(rig, attempts=4)
    slower = msgspec.structs.replace(rig.settings.dispatch, retry_first_s=2.0)
    quick, rig.settings = rig.settings, msgspec.structs.replace(rig.settings, dispatch=slower)
    await rig.stop()
    await rig.start()
    rig.hub.post("peer", "agent", "poison", "ordinary")
    await rig.until(lambda: notes(rig) == ["poison 1"])
    await rig.stop()  # in the midst of the pause before the second attempt
    rig.settings = quick
    await rig.start()
    await rig.until(lambda: answered(rig) == said(rig)[1:])
    assert notes(rig) == ["poison 1", "poison 2", "poison 3", "poison 4", "ordinary 1"]


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_deadline_cancels_the_handler_and_what_it_staged_is_nowhere(rig: Rig, attempts: int) -> None:
    await begin(rig, attempts=attempts)
    rig.hub.post("peer", "agent", "slow", "ordinary")
    await rig.until(lambda: answered(rig) == said(rig)[1:])
    assert notes(rig) == [*(line for n in range(attempts) for line in (f"slow {n + 1}", "cancelled")), "ordinary 1"]
    assert await counted(rig) == 1
    [dead] = await rig._journal.dead("agent", 10)
    assert "did not return within 0.1 s" in dead.error


async def test_what_is_set_aside_holds_nothing_up_and_comes_again_late_even_after_a_restart(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", "detached 1", "detached poison", "ordinary")
    await rig.until(lambda: answered(rig) == said(rig)[2:])
    assert await rig._journal.dead("agent", 10) == [], "set aside, not given up"
    assert "late" not in notes(rig)
    await rig.stop()
    await rig.start()
    mended, poison, ordinary = said(rig)
    await rig.until(lambda: answered(rig) == [ordinary, mended] and rig.status()[0]["dead"] == 1)
    assert [line for line in notes(rig) if line in ("in order", "late")][:4] == ["in order"] * 4
    [dead] = await rig._journal.dead("agent", 10)
    assert dead.error == "ValueError: indigestible"
    assert await rig._journal.timers("plugin") == []
    assert await counted(rig) == 2
    assert poison not in answered(rig)


async def test_a_batch_with_one_poison_is_taken_apart_and_loses_that_one_alone(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", *("several poison" if number == 2 else f"several {number}" for number in range(5)))
    others = [id_ for number, id_ in enumerate(said(rig)) if number != 2]
    await rig.until(lambda: answered(rig) == others)
    together = [line for line in notes(rig) if line.startswith("together")]
    assert together == ["together 5"] * 2 + ["together 1"] * 6
    assert await counted(rig) == 4
    [dead] = await rig._journal.dead("agent", 10)
    assert (dead.attempts, dead.error) == (2, "ValueError: indigestible")


_UNSAYABLE = """
from agentd.plugin import Context, GiveUp, Message, Plugin, RetryLater, Timer

plugin = Plugin("unsayable")
HALF = "cannot open '\\udcff'"  # as Python spells a file name that is not UTF-8


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


ERRORS = {
    "no text": ValueError(HALF),
    "no text, given up": GiveUp(HALF),
    "no words": Wordless(),
    "no number": RetryLater("the service is down"),
    "nan": RetryLater(float("nan")),
    "too large": RetryLater(10**400),
}


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context) -> None:
    raise ERRORS["no text"]


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "timer":
        ctx.remind(0)
    elif message.text in ERRORS:
        raise ERRORS[message.text]
    ctx.reply("fine")
"""

_UNSAID = ["no text", "no text, given up", "no words", "no number", "nan", "too large"]


async def test_an_error_that_cannot_be_told_or_kept_costs_its_event_and_not_the_daemon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pytest captures has to pass between its processes, and is no text here.
    monkeypatch.setattr(logging.getLogger("agentd"), "propagate", False)
    (rig.folder / "unsayable.py").write_text(_UNSAYABLE)
    dispatch = msgspec.structs.replace(rig.settings.dispatch, retry_first_s=0.05, retry_max_s=0.1, breaker_lanes=100)
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=dispatch)
    rig.plugin = {"use": str(rig.folder / "unsayable.py"), "attempts": 2}
    rig.identity("agent")
    peers = [f"peer{number}" for number in range(len(_UNSAID))]
    for peer in peers:
        rig.hub.create_agent(peer)
    await rig.start()
    for peer, text in zip(peers, _UNSAID, strict=True):
        rig.hub.post(peer, "agent", text, "timer")
    await rig.until(lambda: all(rig.answers(peer) == ["fine"] for peer in peers))
    assert rig.daemon is not None
    dispatcher = rig.daemon.operations
    await rig.until(lambda: len(dispatcher.status()["plugins"][0]["timers_given_up"]) == len(peers))
    dead = await rig._journal.dead("agent", 10)
    assert sorted(each.error.partition(":")[0] for each in dead) == [
        "GiveUp",
        "RetryLater",
        "RetryLater",
        "RetryLater",
        "ValueError",
        "Wordless",
    ]
    assert r"ValueError: cannot open '\udcff'" in {each.error for each in dead}
