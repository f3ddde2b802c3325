"""A handler that waits for the platform's answer gets it, and a repeat of its turn says nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agentd.hub.faults import Action, Point, Rule

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

_ASKING = """
from pathlib import Path
from agentd.plugin import Context, GiveUp, Message, NotSent, Plugin

plugin = Plugin("asking")
told = Path(__file__).with_name("told")

@plugin.on(Message)
async def ask(message: Message, ctx: Context) -> None:
    if message.text == "to nobody":
        try:
            await ctx.send_now("@nobody-of-this-name", "hello")
        except NotSent as error:
            raise GiveUp(f"not sent: {error.state}") from error
    sent = await ctx.send_now("@peer", "looking", metadata={"reply_to": message.id})
    with told.open("a") as file:
        file.write(f"{ctx.attempt} {sent.id} {sent.seq}\\n")
    if ctx.attempt < 3:
        raise ConnectionError("failed after it was said")
    ctx.reply(f"it stands at {sent.seq}")
"""


async def begin(rig: Rig) -> None:
    (rig.folder / "asking.py").write_text(_ASKING)
    rig.plugin = {"use": str(rig.folder / "asking.py")}
    dispatch = msgspec.structs.replace(rig.settings.dispatch, retry_first_s=0.05)
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=dispatch)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()


async def test_the_answer_is_the_servers_and_three_attempts_say_it_once(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", "question")
    await rig.until(lambda: len(said(rig)) == 2)
    first, second = said(rig)
    lines = (rig.folder / "told").read_text().splitlines()
    assert lines == [f"{attempt} {first[0]} {first[1]}" for attempt in (1, 2, 3)]
    await rig.stop()
    await rig.start()
    assert said(rig) == [first, second]


async def test_a_stop_lets_a_handler_have_the_answer_that_it_waits_for(rig: Rig) -> None:
    (rig.folder / "told").touch()
    await begin(rig)
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DELAY, route="send", delay_s=0.5, times=None))
    rig.hub.post("peer", "agent", "question")
    await rig.until(lambda: rig.hub.faults.fired["rest.delay"] == 1)
    await rig.stop()
    assert (rig.folder / "told").read_text().startswith("1 ")


async def test_a_send_that_never_arrives_is_told_to_the_handler(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", "to nobody")
    await rig.until(lambda: rig.status()[0]["dead"] == 1)
    await rig._journal.commit()  # counted is not yet on disk
    [dead] = await rig._journal.dead("agent", limit=10)
    assert "not sent: refused" in str(dead)


def said(rig: Rig) -> list[tuple[str, int]]:
    return [(row.id, row.seq) for row in rig.hub.ledger() if row.sender == "agent"]
