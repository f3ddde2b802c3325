"""A whole daemon with encryption: whatever way words take through it, none of them can be read on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from agentd import config

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

MARK = "words-that-nobody-else-should-read"

PLUGIN = """
from agentd.plugin import Context, GiveUp, Message, Plugin, RetryLater, Timer

plugin = Plugin("plugin")


@plugin.on(Timer)
async def later(timer: Timer, ctx: Context) -> None:
    ctx.reply(f"it is time for {timer.data['about']}")


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    before = await ctx.state.get("said", dict, {})
    ctx.state.put("said", {**before, str(message.seq): message.text})
    ctx.plugin_state.put("last", message.text)
    if message.text.startswith("give up"):
        raise GiveUp(message.text)
    if message.text.startswith("retry"):
        await ctx.progress({"at": message.text})
        raise RetryLater(3_600, message.text)
    ctx.remind(3_600, data={"about": message.text})
    ctx.outcome("said", {"what": message.text})
    ctx.reply(f"you said {message.text}")
"""


def where(folder: Path) -> set[str]:
    """Files of the state folder that the mark can be read in."""
    return {file.name for file in folder.rglob("*") if file.is_file() and MARK.encode() in file.read_bytes()}


@pytest.mark.parametrize("encrypted", [True, False])
async def test_no_word_can_be_read_on_the_disk_and_every_word_is_there_after_a_restart(
    rig: Rig, encrypted: bool
) -> None:
    (rig.folder / "plugin.py").write_text(PLUGIN)
    rig.plugin = {"use": str(rig.folder / "plugin.py")}
    if encrypted:
        key = rig.folder / "journal.key"
        key.write_text("c0" * 32)
        key.chmod(0o600)
        encryption = config.Encryption(key=config.KeySource(file=str(key)))
        journal = msgspec.structs.replace(rig.settings.journal, encryption=encryption)
        rig.settings = msgspec.structs.replace(rig.settings, journal=journal)
    rig.identity("agent")
    for peer in ("peer", "dead", "failing"):
        rig.hub.create_agent(peer)
    await rig.start()
    rig.hub.post("peer", "agent", f"one {MARK}", f"two {MARK}")
    rig.hub.post("dead", "agent", f"give up {MARK}")
    rig.hub.post("failing", "agent", f"retry {MARK}")
    await rig.until(lambda: len(rig.answers("peer")) == 2 and rig.status()[0]["dead"] == 1)
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 2)
    await rig._journal.commit()
    state = rig.folder / "state"
    found = where(state)
    await rig.stop()
    found |= where(state)
    assert (found == set()) == encrypted
    if not encrypted:
        assert "journal.db" in found
        return
    await rig.start()
    assert rig.daemon is not None
    explained = await rig.daemon.operations.dead(None, False, 10)
    assert MARK in explained[0]["error"]
    assert MARK.encode() in (await rig._journal.state_get("plugin", 0, "last") or b"")
    [attempt] = await rig._journal.attempts("plugin")
    assert MARK.encode() in (attempt.progress or b"")
    timers = await rig._journal.timers("plugin")
    assert {MARK in timer.data.decode() for timer in timers} == {True}
    outcomes = await rig._journal.outcomes("plugin", 1, 1)
    assert MARK.encode() in (outcomes[0].data or b"")
    [letter] = await rig._journal.dead("agent", 10)
    assert MARK in letter.traceback
    assert where(state) == set()
    rig.hub.post("peer", "agent", f"three {MARK}")
    await rig.until(lambda: rig.answers("peer") == [f"you said {number} {MARK}" for number in ("one", "two", "three")])
