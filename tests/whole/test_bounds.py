"""Bounds that are reached: it shows, nothing is lost, and it goes on when there is room."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from agentd import config
from agentd.hub.faults import Action, Point, Rule

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

LARGE = "x" * 20_000

HOARDER = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("hoarder")

@plugin.on(Message, attempts=1)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "forget":
        ctx.plugin_state.delete("0")
    else:
        ctx.plugin_state.put(message.text, "x" * 400_000)
    ctx.reply("done")
"""


async def test_a_journal_at_its_limit_sheds_and_says_so_and_takes_the_rest_when_the_limit_is_raised(rig: Rig) -> None:
    journal = config.JournalSettings(full_retry_s=0.05, max_mb=1)
    dispatch = config.Dispatch(drain_timeout_s=0.2)
    rig.settings = msgspec.structs.replace(rig.settings, journal=journal, dispatch=dispatch)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    for _ in range(60):
        rig.hub.post("peer", "agent", LARGE)
    await rig.until(lambda: rig.states() == ["throttled"])
    assert rig.daemon is not None
    status = rig.daemon.operations.status()["journal"]
    assert (status["full"], status["at_limit"], status["max_bytes"]) == (True, True, 1 << 20)
    assert 0 < status["bytes"] <= 1 << 20
    assert "journal.max_mb" in rig.status()[0]["state_reason"]
    rig.hub.post("peer", "agent", "stays with the server")
    await rig.until(lambda: rig.status()[0]["shed"] == 1)
    assert rig.hub.undelivered("agent") > 0
    await rig.stop()  # what waits for the disk is lost with the process, and was acknowledged to nobody
    rig.settings = msgspec.structs.replace(rig.settings, journal=config.JournalSettings())
    await rig.start()
    said = {row.id: row.seq for row in rig.hub.ledger() if row.sender == "peer"}
    await rig.until(lambda: len({entry.id for entry in rig.handled()}) == len(said))
    await rig.until(lambda: rig.status()[0]["pending"] == rig.status()[0]["outbox_ready"] == 0)
    assert list(dict.fromkeys(entry.seq for entry in rig.handled())) == list(said.values()), "all, and in order"
    answers = Counter(row.reply_to for row in rig.hub.ledger() if row.sender == "agent")
    assert answers == dict.fromkeys(said, 1), "each once, whatever was handled again"
    assert not rig.daemon.operations.status()["journal"]["at_limit"]


async def test_a_plugin_whose_state_is_full_fails_in_its_own_line_and_goes_on_when_it_has_forgotten_something(
    rig: Rig,
) -> None:
    file = rig.folder / "hoarder.py"
    file.write_text(HOARDER)
    rig.plugin = {"use": str(file), "state_max_mb": 1}
    rig.identity("agent")
    rig.hub.create_agent("peer")
    daemon = await rig.start()
    rig.hub.post("peer", "agent", "0", "1", "2")
    await rig.until(lambda: rig.status()[0]["dead"] == 1)
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 2)
    (plugin,) = daemon.operations.status()["plugins"]
    assert (plugin["state_bytes"], plugin["state_max_bytes"], plugin["state_full"]) == (2 * 400_003, 1 << 20, True)
    await rig._journal.commit()
    (letter,) = await daemon.operations.dead("agent", False, 10)
    assert "state_max_mb in [plugin.plugin]" in letter["error"]
    await rig.stop()
    daemon = await rig.start()
    assert daemon.operations.status()["plugins"][0]["state_bytes"] == 2 * 400_003
    rig.hub.post("peer", "agent", "forget", "3")
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 4)
    assert daemon.operations.status()["plugins"][0]["state_bytes"] == 2 * 400_003
    assert rig.status()[0]["dead"] == 1


async def test_more_behind_a_gap_than_is_held_shows_and_is_fetched(rig: Rig) -> None:
    intake = config.Intake(gap_grace_s=0.1, audit_interval_s=300.0, refetch_retry_max_s=0.5, held_max=5)
    rig.settings = msgspec.structs.replace(rig.settings, intake=intake)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "first")
    await rig.until_handled(1)
    rig.hub.faults.add(
        Rule(point=Point.REST, action=Action.STATUS, status=503, route="history", times=None, for_s=60.0),
        Rule(point=Point.PUSH, action=Action.DROP, identity="agent"),
    )
    rig.hub.post("peer", "agent", *[f"message {number}" for number in range(20)])
    await rig.until(lambda: rig.status()[0]["held_full"])
    assert rig.status()[0]["held"] == 5
    rig.hub.faults.replace()
    await rig.until_handled(21)
    await rig.assert_accounted()
    assert not rig.status()[0]["held_full"]
