"""The test kit shows what the daemon would do: the same filters, turns, retries and restarts."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.apis import Contact
from agentd.core.events import Record
from agentd.core.exported import line
from agentd.errors import ConfigError, GiveUp, PluginLoadError
from agentd.plugin import Context, Gap, Message, Plugin, PluginContext, Refused, Sent, Typing, Unavailable
from agentd.testing import ExportUnreadable, Harness


class Config(msgspec.Struct, frozen=True):
    """What the counter may be told."""

    word: str = "number"


counter = Plugin("counter", config=Config)


@counter.on(Message)
async def count(message: Message, ctx: Context[Config]) -> None:
    total = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", total)
    ctx.plugin_state.put("last", message.text)
    ctx.reply(f"{ctx.config.word} {total}")


async def test_effects_show_after_the_message_was_handled() -> None:
    async with Harness(counter, {"word": "no."}) as h:
        await h.message("a", sender="@bob")
        await h.message("b", sender="@bob")
        await h.message("c", sender="@ann")
        assert h.texts == ["no. 1", "no. 2", "no. 1"]
        assert [send.target for send in h.sent] == ["@bob", "@bob", "@ann"]
        assert h.state("count", int) == 1
        assert h.state("count", int, conversation="conv_bob") == 2
        assert h.state("count", int, 0, conversation="conv_nobody") == 0
        assert h.plugin_state("last", str) == "c"
        assert h.plugin_state("first", str) is None


async def test_a_crash_between_handler_and_commit_repeats_with_the_same_keys_and_counts_once() -> None:
    async with Harness(counter) as h:
        await h.message("before")
        h.crash_after_handler()
        await h.message("cut off")
        assert h.texts == ["number 1", "number 2"]
        assert [send.client_msg_id for send in h.lost] == [h.sent[1].client_msg_id]
        assert h.state("count", int) == 2
        await h.message("after")
        assert h.texts[-1] == "number 3"


async def test_a_crash_now_loses_nothing_that_was_committed() -> None:
    async with Harness(counter) as h:
        await h.message("a")
        await h.crash()
        await h.message("b")
        assert h.texts == ["number 1", "number 2"]


async def test_a_crash_in_the_middle_of_a_handler_runs_it_again() -> None:
    plugin = Plugin("p")
    gate = asyncio.Event()
    runs = 0

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        nonlocal runs
        runs += 1
        ctx.reply("done")
        await gate.wait()

    async with Harness(plugin) as h:
        await h.message("a", settle=False)
        while not runs:
            await asyncio.sleep(0)
        gate.set()
        await h.crash()
        assert runs == 2
        assert h.texts == ["done"]
        assert h.failed == []


async def test_retries_wait_for_the_clock_that_the_test_moves() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        ctx.reply(f"attempt {ctx.attempt}")

    async with Harness(plugin) as h:
        await h.message("a")
        assert h.pending == 1
        assert [(each.count, each.error) for each in h.failed] == [(1, "ConnectionError: not yet")]
        await h.advance(0.4)
        assert h.failed[0].count == 1
        await h.advance(0.2)
        assert h.failed[0].count == 2
        await h.advance(60)
        assert h.texts == ["attempt 3"]
        assert h.failed == []


async def test_what_was_given_up_shows_with_its_reason() -> None:
    plugin = Plugin("p")

    @plugin.on(Message, kind="text")
    async def handle(message: Message, ctx: Context) -> None:
        raise GiveUp("spam")

    async with Harness(plugin) as h:
        await h.message("a")
        assert [dead.error for dead in h.dead] == ["GiveUp: spam"]
        assert h.pending == 0


async def test_own_words_and_groups_reach_whoever_asked_for_them() -> None:
    plugin = Plugin("p")
    seen = []

    @plugin.on(Message, own=True, direct=False)
    async def handle(message: Message, ctx: Context) -> None:
        seen.append((message.sender, message.conversation, message.own))

    async with Harness(plugin, identity="alice") as h:
        await h.message("mine", own=True, direct=False)
        await h.message("theirs", sender="@bob", conversation="grp_x", direct=False)
        await h.message("direct")
    assert seen == [("alice", "grp_group", True), ("bob", "grp_x", False)]


async def test_an_event_that_runs_alone_at_two_crashes_is_given_up_and_the_next_is_handled() -> None:
    plugin = Plugin("p")
    runs: list[tuple[str | None, int]] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        runs.append((message.text, ctx.attempt))
        if message.text == "deadly":
            await asyncio.Event().wait()
        ctx.reply("alive")

    async with Harness(plugin) as h:
        await h.message("deadly", settle=False)
        await h.message("next", settle=False)
        while not runs:
            await asyncio.sleep(0)
        await h.crash(settle=False)
        while len(runs) < 2:
            await asyncio.sleep(0)
        await h.crash()
        assert runs == [("deadly", 1), ("deadly", 2), ("next", 1)]
        assert [dead.error for dead in h.dead] == ["ProcessDied: the process died 2 times while this event was handled"]
        assert h.texts == ["alive"]


async def test_what_is_sent_in_the_turn_stays_said_and_a_repeat_of_the_turn_gets_the_first() -> None:
    plugin = Plugin("p")
    got: list[Sent] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("last")
        got.append(await ctx.send_now("@boss", "first"))
        if ctx.attempt == 1:
            raise ValueError

    async with Harness(plugin) as h:
        await h.message("a")
        assert h.texts == ["first"]
        await h.advance(60)
        assert h.texts == ["first", "last"]
        assert got[0] == got[1]
        assert got[0].client_msg_id == h.sent[0].client_msg_id
        assert len({send.client_msg_id for send in h.sent}) == 2


async def test_a_def_handler_waits_for_what_it_sends_now() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    def handle(message: Message, ctx: Context) -> None:
        sent = ctx.wait(ctx.send_now("@boss", "first"))
        ctx.reply(f"it is {sent.id}")

    async with Harness(plugin) as h:
        await h.message("a")
        assert h.texts == ["first", "it is msg_sent_1"]


async def test_signals_reach_their_handlers() -> None:
    plugin = Plugin("p")
    seen = []

    @plugin.on(Typing)
    async def typing(signal: Typing, ctx: Context) -> None:
        seen.append(signal.sender)

    @plugin.on(Gap)
    def lost(gap: Gap, ctx: Context) -> None:
        ctx.send("@owner", f"lost {gap.absent}")

    async with Harness(plugin) as h:
        await h.signal(Typing(identity="me", sender="bob", active=True))
        await h.signal(Gap(identity="me", conversation="c", epoch=1, start=3, stop=5, absent=2))
        assert seen == ["bob"]
        assert h.texts == ["lost 2"]


async def test_setup_and_teardown_run_around_the_test() -> None:
    plugin = Plugin("p")
    calls = []

    @plugin.setup
    async def up(ctx: PluginContext) -> None:
        calls.append("up")

    @plugin.teardown
    async def down(ctx: PluginContext) -> None:
        calls.append("down")

    async with Harness(plugin):
        assert calls == ["up"]
    assert calls == ["up", "down"]


async def test_wrong_settings_and_wrong_handlers_are_refused_as_by_the_daemon() -> None:
    with pytest.raises(ConfigError, match=r"plugin\.counter\.config\.wrod: no such setting; did you mean word\?"):
        async with Harness(counter, {"wrod": "no."}):
            pass

    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message) -> None: ...

    with pytest.raises(PluginLoadError, match="must take two arguments"):
        async with Harness(plugin):
            pass


async def test_middlewares_run_in_the_kit_too() -> None:
    plugin = Plugin("p")
    calls = []

    @plugin.middleware
    async def around(event: Message, ctx: Context) -> AsyncIterator[None]:
        calls.append("in")
        yield
        calls.append("out")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        calls.append("handle")

    async with Harness(plugin) as h:
        await h.message("a")
    assert calls == ["in", "handle", "out"]


hoarder = Plugin("hoarder")


@hoarder.on(Message, attempts=1)
async def hoard(message: Message, ctx: Context) -> None:
    if message.text == "forget":
        ctx.plugin_state.delete("a")
    else:
        ctx.plugin_state.put(message.text or "", "x" * 600_000)


async def test_a_plugin_keeps_no_more_than_its_settings_allow() -> None:
    async with Harness(hoarder, state_max_mb=1) as h:
        await h.message("a")
        await h.message("b")
        assert [dead.error.partition(":")[0] for dead in h.dead] == ["ValueError"]
        assert "state_max_mb" in h.dead[0].error
        assert h.plugin_state("b", str) is None
        await h.message("forget")
        await h.message("b")
        assert len(h.plugin_state("b", str, "")) == 600_000
        assert len(h.dead) == 1


def exported(*events: Message) -> list[bytes]:
    return [line(Record(number, 1, event, 1_767_225_600.0)) for number, event in enumerate(events, start=1)]


def heard(seq: int, text: str, **fields: Any) -> Message:
    place = {"identity": "alice", "conversation": "conv_prod", "seq": seq, "id": f"msg_prod_{seq}", "sender": "bob"}
    return Message(**{**place, "text": text, "answer_to": "@bob", "payload": b'{"n":1}', **fields})


async def test_an_exported_conversation_happens_again_in_order(tmp_path: Path) -> None:
    file = tmp_path / "case.jsonl"
    file.write_bytes(b"".join(exported(heard(7, "a"), heard(8, "mine", own=True), heard(9, "b", late=True))))
    seen: list[Message] = []
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        seen.append(message)
        ctx.state.put("last", message.text)
        ctx.reply(f"re {message.text}")

    async with Harness(plugin, identity="alice") as h:
        replayed = await h.replay(file)
        assert seen == [heard(7, "a"), heard(9, "b", late=True)]
        assert [event.seq for event in replayed] == [7, 8, 9]
        assert h.texts == ["re a", "re b"]
        assert h.state("last", str) == "b"
        await h.message("and on", conversation="conv_prod")
        assert seen[-1].seq == 10


async def test_own_words_are_replayed_to_whom_they_are_shown_and_a_strange_identity_is_the_first() -> None:
    seen: list[tuple[str, bool]] = []
    plugin = Plugin("p")

    @plugin.on(Message, own=True, identity="me")
    async def handle(message: Message, ctx: Context) -> None:
        seen.append((str(message.text), message.own))

    async with Harness(plugin) as h:
        await h.replay(exported(heard(1, "theirs"), heard(2, "ours", own=True)))
    assert seen == [("theirs", False), ("ours", True)]


async def test_a_replay_survives_a_crash_like_any_other_mail() -> None:
    async with Harness(counter) as h:
        h.crash_after_handler()
        await h.replay(exported(heard(1, "a"), heard(2, "b")))
        assert h.texts == ["number 1", "number 2"]
        assert len(h.lost) == 1


async def test_a_file_that_is_no_export_is_refused_before_anything_happens() -> None:
    async with Harness(counter) as h:
        with pytest.raises(ExportUnreadable, match="line 2"):
            await h.replay([*exported(heard(1, "a")), b"hello"])
        assert h.sent == []


async def test_a_secret_is_given_by_name_and_an_unknown_one_names_the_remedy() -> None:
    plugin = Plugin("p")
    given: list[str] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        given.append(ctx.secret(message.text or ""))

    async with Harness(plugin, secrets={"model": "sk-0123456789"}, attempts=1) as h:
        await h.message("model")
        await h.message("other")
        assert given == ["sk-0123456789"]
        assert "write [plugin.p.secrets] with other = { file = ... }" in h.dead[0].error


async def test_what_the_test_says_answers_the_api_and_what_was_called_is_kept_in_order() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        known = await ctx.api.contacts.list(limit=2)
        found = [row.handle async for row in ctx.api.directory.search("bo")]
        await ctx.api.contacts.add(f"@{message.sender}")
        ctx.reply(f"{[contact.handle for contact in known]} {found}")

    async with Harness(plugin) as h:
        h.api.answers("contacts.list", [Contact(handle="ann")])
        h.api.answers("directory.search", [{"handle": f"bo{number}"} for number in range(60)])
        h.api.answers("contacts.add")
        await h.message("a", sender="@bob")
        assert h.texts == [f"['ann'] {[f'bo{number}' for number in range(60)]}"]
        assert [(call.name, call.arguments) for call in h.api.calls] == [
            ("contacts.list", {"limit": 2}),
            ("directory.search", {"prefix": "bo"}),
            ("contacts.add", {"handle": "@bob"}),
        ]
        h.api.answers("contacts.list", lambda limit: [Contact(handle=f"{limit} asked for")])
        await h.message("b", sender="@bob")
        assert (h.texts[1] or "").startswith("['2 asked for']")


async def test_a_call_that_nobody_answers_fails_the_test_with_what_to_write() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        await ctx.api.contacts.get(message.sender)

    what = re.escape(
        """ctx.api.contacts.get(handle='bob'), which has no answer; say h.api.answers("contacts.get", ...)"""
    )
    async with Harness(plugin) as h:
        with pytest.raises(AssertionError, match=what):
            await h.message("a", sender="@bob")
    with pytest.raises(AssertionError, match=what):
        async with Harness(plugin) as h:
            await h.message("a", sender="@bob", settle=False)
            while not h.api.calls:
                await asyncio.sleep(0)


async def test_an_answer_to_no_call_or_of_another_type_is_refused_where_it_is_written() -> None:
    async with Harness(Plugin("p")) as h:
        with pytest.raises(ValueError, match=r"did you mean contacts\.list\?"):
            h.api.answers("contacts.lists", [])
        with pytest.raises(msgspec.ValidationError):
            h.api.answers("contacts.list", [{"name": "no handle"}])


async def test_an_unavailable_platform_is_tried_again_when_it_asked_and_a_refusal_is_a_failure() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        await ctx.api.contacts.add(message.sender)
        ctx.reply("added")

    async with Harness(plugin, attempts=3) as h:
        h.api.answers("contacts.add", Unavailable("busy", 42.0))
        await h.message("a")
        await h.advance(41.9)
        assert len(h.api.calls) == 1
        h.api.answers("contacts.add", Refused(403, "BLOCKED", "they blocked you"))
        await h.advance(0.1)
        assert [failed.error for failed in h.failed] == ["Refused: 403 BLOCKED: they blocked you"]
        h.api.answers("contacts.add")
        await h.advance(60)
        assert h.texts == ["added"]
        # Every attempt under one key, so that the platform adds once.
        assert len({call.key for call in h.api.calls}) == 1
        assert len(h.api.calls) == 3


async def test_a_crash_repeats_a_call_under_the_key_that_it_had() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        await ctx.api.groups.create("Ants")

    async with Harness(plugin) as h:
        h.api.answers("groups.create", {"group": {"id": "grp_1", "name": "Ants"}})
        h.crash_after_handler()
        await h.message("a")
        await h.message("b")
        first, again, other = (call.key for call in h.api.calls)
        assert first == again != other
