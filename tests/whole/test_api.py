"""Handlers call the platform through a daemon: everything it offers, once whatever happens, without seeing a key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from agentd.hub.faults import Action, Point, Rule

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

_PLUGIN = """
import hashlib
from pathlib import Path

from agentd.plugin import Context, Message, Plugin, Refused

plugin = Plugin("calling")
told = Path(__file__).with_name("told")


def tell(line: str) -> None:
    with told.open("a") as file:
        file.write(line + "\\n")


@plugin.on(Message, text="^everything")
async def everything(message: Message, ctx: Context) -> None:
    api, peer = ctx.api, f"@{message.sender}"
    assert (await api.profile.get()).handle == "agent"
    assert (await api.profile.update(description="busy")).description == "busy"
    assert (await api.agents.get(peer)).handle == "peer"
    await api.contacts.add(peer)
    await api.contacts.note(peer, "met")
    assert (await api.contacts.get(peer)).notes == "met"
    assert [contact.handle for contact in await api.contacts.list()] == ["peer"]
    assert (await api.presence.get(peer)).status == "offline"
    assert [state.handle for state in await api.presence.batch(("peer", "nobody"))] == ["peer"]
    await api.presence.set("busy", "thinking")
    here = message.conversation
    assert [row.id for row in await api.conversations.list()] == [here]
    assert "peer" in [each.handle for each in await api.conversations.participants(here)]
    assert (await api.conversations.context(here)).relationship.note == "met"
    assert [each.text for each in await api.conversations.history(here, before_seq=2)] == ["everything"]
    await api.messages.mark_read(message.id)
    assert await api.conversations.typing(here)
    assert await api.conversations.read_through(here, message.seq)
    made = await api.groups.create("Ants", members=(peer,))
    group = made.group.id
    assert [added.outcome for added in made.add_results] == ["invited"]
    assert (await api.groups.update(group, description="all of them")).description == "all of them"
    assert [member.role for member in (await api.groups.get(group)).members] == ["admin"]
    assert await api.groups.leave(group) is None
    assert await api.groups.invites() == ()
    assert (await api.mutes.agent(peer)).target_id == "peer"
    assert [mute.target_kind for mute in await api.mutes.list()] == ["agent"]
    await api.mutes.unmute_agent(peer)
    assert (await api.mutes.conversation(here)).target_id == here
    await api.mutes.unmute_conversation(here)
    assert [row.handle async for row in api.directory.search("pe")] == ["peer"]
    file = await api.attachments.upload(b"hello, file", "a.txt", "text/plain", to=peer)
    assert await api.attachments.fetch(file) == b"hello, file"
    await api.contacts.block(peer)
    await api.contacts.unblock(peer)
    await api.contacts.remove(peer)
    try:
        await api.groups.get("grp_nothing")
    except Refused as error:
        tell(f"{error.status} {error.code}")
    await api.messages.hide(message.id)
    await api.conversations.hide(here)
    tell(ctx.api.platform)
    ctx.reply("done", attachment_id=file)


@plugin.on(Message, text="^group")
async def group(message: Message, ctx: Context) -> None:
    made = await ctx.api.groups.create(message.text)
    tell(f"{ctx.attempt} {made.group.id}")
    if ctx.attempt < 3 and "twice" in message.text:
        raise ConnectionError("failed after it was made")
    ctx.reply(made.group.id)
"""


async def begin(rig: Rig, isolate: str = "none") -> None:
    (rig.folder / "calling.py").write_text(_PLUGIN)
    rig.plugin = {"use": str(rig.folder / "calling.py"), "isolate": isolate}
    dispatch = msgspec.structs.replace(rig.settings.dispatch, retry_first_s=0.05)
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=dispatch)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()


def told(rig: Rig) -> list[str]:
    file = rig.folder / "told"
    return file.read_text().splitlines() if file.exists() else []


def groups(rig: Rig) -> list[str]:
    rows = rig.hub.service.database.rows("SELECT name FROM conversation WHERE kind = 'group' ORDER BY number")
    return [name for (name,) in rows]


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_every_call_does_what_it_says_here_and_in_a_process_of_its_own(rig: Rig, isolate: str) -> None:
    await begin(rig, isolate)
    rig.hub.post("peer", "agent", "everything")
    await rig.until(lambda: rig.answers("peer") == ["done"])
    assert told(rig) == ["404 CONVERSATION_NOT_FOUND", "agentchat"]


async def test_three_attempts_at_a_turn_make_one_group(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", "group twice")
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    [group] = rig.answers("peer")
    assert told(rig) == [f"{attempt} {group}" for attempt in (1, 2, 3)]
    assert groups(rig) == ["group twice"]


@pytest.mark.parametrize("action", [Action.DISCONNECT_AFTER, Action.DELAY])
async def test_a_call_whose_answer_was_lost_or_late_is_made_once(rig: Rig, action: Action) -> None:
    rig.settings = msgspec.structs.replace(rig.settings, rest=msgspec.structs.replace(rig.settings.rest, timeout_s=0.5))
    await begin(rig)
    rule = Rule(point=Point.REST, action=action, route="create_group", delay_s=1.2, times=1)
    rig.hub.faults.add(rule)
    rig.hub.post("peer", "agent", "group")
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    assert rig.hub.counters()["rest.create_group"] > 1
    assert groups(rig) == ["group"]


async def test_a_platform_that_is_out_of_order_is_tried_again_when_it_asked(rig: Rig) -> None:
    await begin(rig)
    rule = Rule(point=Point.REST, action=Action.STATUS, route="create_group", status=503, retry_after_s=1.0, times=1)
    rig.hub.faults.add(rule)
    rig.hub.post("peer", "agent", "group")
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    assert told(rig) == [f"2 {rig.answers('peer')[0]}"]


async def test_a_turn_that_begins_before_its_identity_is_connected_waits_for_the_key(rig: Rig) -> None:
    await begin(rig)
    rule = Rule(point=Point.REST, action=Action.DELAY, route="create_group", delay_s=0.5, times=1)
    rig.hub.faults.add(rule)
    rig.hub.post("peer", "agent", "group")
    await rig.until(lambda: rig.hub.faults.fired["rest.delay"] == 1)
    rig.settings = msgspec.structs.replace(
        rig.settings, dispatch=msgspec.structs.replace(rig.settings.dispatch, drain_timeout_s=0.05)
    )
    await rig.stop()
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DELAY, route="me", delay_s=0.5, times=1))
    await rig.start()
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    assert groups(rig) == ["group"]
    assert rig.states() == ["live"]


_ASKING = """
import asyncio
from pathlib import Path
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("asking")


@plugin.on(Message, attempts=2)
async def ask(message: Message, ctx: Context) -> None:
    with Path(__file__).with_name("told").open("a") as file:
        file.write(f"{ctx.attempt}\\n")
    while message.text == "wait" and not Path(__file__).with_name("go").exists():
        await asyncio.sleep(0.01)
    made = await ctx.api.groups.create(message.text)
    ctx.reply(made.group.id)
"""


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_a_turn_that_calls_while_its_identity_is_parked_waits_for_the_key_and_spends_no_attempt(
    rig: Rig, isolate: str
) -> None:
    await begin(rig, isolate)
    await rig.stop()
    (rig.folder / "calling.py").write_text(_ASKING)
    await rig.start()
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, route="create_group", status=401, times=1))
    rig.hub.post("peer", "agent", "first")
    await rig.until(lambda: rig.states() == ["parked"])
    calls = rig.hub.counters()["rest.create_group"]
    await rig.until(lambda: len(told(rig)) >= 5)
    assert set(told(rig)) == {"1"}, "none of its two attempts is spent"
    assert rig.hub.counters()["rest.create_group"] == calls, "nothing is called under a key that was refused"
    rig.keys["agent"] = rig.hub.rotate_key("agent")
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    assert groups(rig) == ["first"]
    assert await rig._journal.dead("agent", 10) == []


async def test_nothing_is_called_under_a_refused_key_however_long_its_connection_takes_to_end(rig: Rig) -> None:
    await begin(rig)
    await rig.stop()
    (rig.folder / "calling.py").write_text(_ASKING)
    await rig.start()
    rig.hub.post("peer", "agent", "wait")
    await rig.until(lambda: told(rig) == ["1"])
    rig.hub.afflict(Action.HALF_OPEN, "agent")  # it answers no close
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, route="create_group", status=401, times=1))
    (rig.folder / "go").touch()
    await rig.until(lambda: len(told(rig)) >= 4)
    assert rig.states() == ["live"], "the connection has not ended yet"
    assert set(told(rig)) == {"1"}
    assert rig.hub.counters()["rest.create_group"] == 1
    assert groups(rig) == []


async def test_a_turn_that_calls_while_the_platform_is_gone_waits_for_it_and_spends_no_attempt(rig: Rig) -> None:
    await begin(rig)
    await rig.stop()
    (rig.folder / "calling.py").write_text(_ASKING)
    rig.settings = msgspec.structs.replace(rig.settings, rest=msgspec.structs.replace(rig.settings.rest, retries=0))
    await rig.start()
    rig.hub.post("peer", "agent", "wait")
    await rig.until(lambda: told(rig) == ["1"])
    rig.hub.restart_soon(down_s=2.0)
    await rig.until(lambda: rig.states() == ["connecting"])
    (rig.folder / "go").touch()
    await rig.until(lambda: len(told(rig)) >= 4)
    await rig.until(lambda: len(rig.answers("peer")) == 1)
    assert set(told(rig)) == {"1"}, "none of its two attempts is spent"
    assert groups(rig) == ["wait"]


async def test_a_key_that_is_refused_to_a_call_parks_the_identity_and_nothing_more_is_called(rig: Rig) -> None:
    await begin(rig)
    rule = Rule(point=Point.REST, action=Action.STATUS, route="create_group", status=401, times=1)
    rig.hub.faults.add(rule)
    rig.hub.post("peer", "agent", "group")
    await rig.until(lambda: rig.states() == ["parked"])
    calls = rig.hub.counters()["rest.create_group"]
    await asyncio.sleep(0.5)  # the turn is tried again meanwhile
    assert rig.hub.counters()["rest.create_group"] == calls
    assert groups(rig) == []
