"""What a turn can be about and how it goes on: batches, progress, set aside, replays, stale mail, pauses, loops."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from agentd.config import CatchUp, LoopGuard
from agentd.core.events import Digest, Event, Timer
from agentd.errors import GiveUp, RetryLater
from agentd.journal.storage import Change, DeadRow, Paused, StatePut, StoredRecord
from agentd.plugin import Context, Message, Plugin
from agentd.testing import Harness

Seen = list[Any]


def batching(seen: Seen, size: int = 3, settle_s: float = 0.1, **given: Any) -> Plugin[Any]:
    plugin = Plugin("batcher")

    @plugin.on(Message, batch=size, settle_s=settle_s, **given)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        seen.append([message.text for message in messages])
        if "later" in (messages[0].text or "") and ctx.attempt == 1:
            raise RetryLater(60)
        ctx.reply(f"{len(messages)} in one")

    return plugin


async def say(h: Harness, *texts: str, **given: Any) -> None:
    for text in texts:
        await h.message(text, settle=False, **given)
    await h.settle()


def past(h: Harness, seconds: float) -> datetime:
    return datetime.fromtimestamp(h.clock.unix(), UTC) - timedelta(seconds=seconds)


def dispatcher(h: Harness) -> Any:
    return h._dispatcher


def letter(h: Harness) -> DeadRow:
    """The newest dead letter as the journal would give it."""
    dead = h.dead[-1]
    event = h.journal.records[dead.position - 1].event
    return DeadRow(
        *[getattr(dead, name) for name in ("plugin", "conversation", "position", "attempts", "error", "traceback")],
        dead.plugin_version,
        dead.died_at,
        number=1,
        identity=event.identity,
        conversation_id=event.conversation,
        dropped_at=None,
    )


# --- batches


async def test_what_waits_is_handled_in_one_turn_and_answered_once() -> None:
    seen: Seen = []
    async with Harness(batching(seen)) as h:
        await say(h, "1", "2", "3", "4", "5")
        await h.advance(0.2)
        assert seen == [["1", "2", "3"], ["4", "5"]]
        assert h.texts == ["3 in one", "2 in one"]
        assert [send.content.metadata["reply_to"] for send in h.sent] == ["msg_3", "msg_5"]
        assert h.pending == 0


async def test_a_batch_waits_for_company_and_goes_at_once_when_it_is_full() -> None:
    seen: Seen = []
    async with Harness(batching(seen)) as h:
        await say(h, "1", "2")
        assert seen == []
        await say(h, "3")
        assert seen == [["1", "2", "3"]]


async def test_a_repeat_has_the_same_batch_and_what_came_meanwhile_waits() -> None:
    seen: Seen = []
    async with Harness(batching(seen)) as h:
        await say(h, "later", "2")
        await h.advance(0.2)
        await say(h, "3", "4")
        await h.advance(70)
        assert seen == [["later", "2"], ["later", "2"], ["3", "4"]]


async def test_a_repeat_has_the_same_batch_after_a_restart() -> None:
    seen: Seen = []
    async with Harness(batching(seen)) as h:
        await say(h, "later", "2")
        await h.advance(0.2)
        await h.crash()
        await say(h, "3")
        await h.advance(70)
        assert seen == [["later", "2"], ["later", "2"], ["3"]]
        assert h.texts == ["2 in one", "1 in one"]


async def test_what_was_said_at_once_about_a_batch_is_about_that_batch_after_a_crash_too() -> None:
    seen: Seen = []
    plugin = Plugin("now")

    @plugin.on(Message, batch=10, settle_s=0.1)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        seen.append([message.text for message in messages])
        await ctx.send_now("@peer", f"{len(messages)} in one")
        if len(seen) == 1:
            await h.message("3", settle=False)  # it is there when the process is back

    async with Harness(plugin) as h:
        await say(h, "1", "2")
        h.crash_after_handler()
        await h.advance(0.4)
        assert seen == [["1", "2"], ["1", "2"], ["3"]]
        assert h.texts == ["2 in one", "1 in one"]


async def test_what_was_changed_for_a_batch_is_asked_for_again_by_that_batch_after_a_crash() -> None:
    seen: Seen = []
    plugin = Plugin("changing")

    @plugin.on(Message, batch=10, settle_s=0.1)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        seen.append([message.text for message in messages])
        await ctx.api.messages.mark_read(messages[-1].id)

    async with Harness(plugin) as h:
        h.api.answers("messages.mark_read")
        await say(h, "1", "2")
        h.crash_after_handler()
        await h.advance(0.2)
        await say(h, "3")
        await h.advance(0.2)
        assert seen == [["1", "2"], ["1", "2"], ["3"]]
        first, again, other = h.api.calls
        assert first == again != other


async def test_one_poisonous_event_in_a_batch_takes_no_other_with_it() -> None:
    seen: Seen = []
    plugin = Plugin("poisoned")

    @plugin.on(Message, batch=3, settle_s=0.1)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        texts = [message.text for message in messages]
        if "poison" in texts:
            raise ValueError("no")
        seen.append(texts)

    async with Harness(plugin, attempts=2) as h:
        await say(h, "1", "poison", "3", "4")
        await h.advance(60)
        assert seen == [["1"], ["3"], ["4"]]
        assert [(dead.position, dead.error) for dead in h.dead] == [(2, "ValueError: no")]


async def test_a_batch_that_is_given_up_is_dead_as_a_whole() -> None:
    plugin = Plugin("giver")

    @plugin.on(Message, batch=3, settle_s=0.1)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        raise GiveUp("not mine")

    async with Harness(plugin) as h:
        await say(h, "1", "2")
        await h.advance(1)
        assert [dead.position for dead in h.dead] == [1, 2]
        assert h.pending == 0


async def test_an_event_that_others_want_too_comes_alone() -> None:
    seen: Seen = []
    plugin = batching(seen)

    @plugin.on(Message, text="^!")
    async def command(message: Message, ctx: Context) -> None:
        seen.append(message.text)

    async with Harness(plugin) as h:
        await say(h, "1", "2", "!stop", "4")
        await h.advance(1)
        assert seen == [["1", "2"], ["!stop"], "!stop", ["4"]]


# --- progress


async def test_a_turn_that_gets_on_is_not_cut_off_until_its_ceiling() -> None:
    plugin = Plugin("slow")
    ended: Seen = []

    @plugin.on(Message, timeout_s=0.5)
    async def work(message: Message, ctx: Context) -> None:
        try:
            for step in range(10 if message.text == "finite" else 1_000):
                await asyncio.sleep(0.08)
                ctx.progress({"step": step})
        finally:
            ended.append(message.text)
        ctx.reply("done")

    async with Harness(plugin, attempts=1, timeout_max_s=2.0) as h:
        await h.message("finite")
        assert h.texts == ["done"]
        await h.message("endless")
        assert ended == ["finite", "endless"]
        assert h.dead[0].error.startswith("DeadlinePassed")


async def test_a_thread_that_gets_on_is_not_given_up() -> None:
    plugin = Plugin("threaded")
    pause = threading.Event()

    @plugin.on(Message, timeout_s=0.5)
    def work(message: Message, ctx: Context) -> None:
        for _ in range(10):
            pause.wait(0.08)
            ctx.progress()
        ctx.reply("done")

    async with Harness(plugin, attempts=1) as h:
        await h.message("go")
        assert h.texts == ["done"]


async def test_the_next_attempt_knows_how_far_the_last_one_came_even_after_a_crash() -> None:
    plugin = Plugin("resuming")
    told: Seen = []

    @plugin.on(Message)
    async def work(message: Message, ctx: Context) -> None:
        told.append(ctx.last_progress)
        ctx.progress({"page": ctx.attempt})
        if ctx.attempt == 1:
            raise RetryLater(1)
        ctx.reply("done")

    async with Harness(plugin) as h:
        await h.message("go")
        await h.crash()
        await h.advance(2)
        assert told == [None, {"page": 1}]
        assert h.texts == ["done"]
        assert h.failed == []


async def test_progress_is_on_disk_while_the_turn_runs() -> None:
    plugin = Plugin("dying")
    told: Seen = []
    never = asyncio.Event()

    @plugin.on(Message)
    async def work(message: Message, ctx: Context) -> None:
        told.append(ctx.last_progress)
        if not told[-1]:
            ctx.progress("half")
            await never.wait()

    async with Harness(plugin) as h:
        await h.message("go", settle=False)
        while not told:
            await asyncio.sleep(0)
        await h.crash()
        assert told == [None, "half"]


# --- set aside


async def test_what_fails_for_good_is_tried_later_by_itself_and_holds_nothing_up() -> None:
    plugin = Plugin("moody")
    seen: Seen = []

    @plugin.on(Message, on_dead="detach", attempts=2)
    async def work(message: Message, ctx: Context) -> None:
        seen.append((message.text, message.late))
        if message.text == "bad" and not message.late:
            raise ValueError("not now")
        ctx.reply(f"got {message.text}")

    async with Harness(plugin) as h:
        await say(h, "bad", "good")
        await h.advance(10)
        assert seen == [("bad", False), ("bad", False), ("good", False)]
        assert h.dead == []
        await h.crash()
        await h.advance(400)
        assert seen[3:] == [("bad", True)]
        assert h.texts == ["got good", "got bad"]
        assert h.timers == []


async def test_what_fails_aside_too_becomes_a_dead_letter() -> None:
    plugin = Plugin("poisoned")

    @plugin.on(Message, on_dead="detach", attempts=2)
    async def work(message: Message, ctx: Context) -> None:
        raise ValueError("never")

    async with Harness(plugin) as h:
        await h.message("bad")
        await h.advance(2_000)
        assert [(dead.position, dead.attempts) for dead in h.dead] == [(1, 2)]
        assert "ValueError: never" in h.dead[0].traceback
        assert h.timers == []


async def test_what_is_given_up_is_never_set_aside() -> None:
    plugin = Plugin("giver")

    @plugin.on(Message, on_dead="detach")
    async def work(message: Message, ctx: Context) -> None:
        raise GiveUp("not mine")

    async with Harness(plugin) as h:
        await h.message("bad")
        assert len(h.dead) == 1
        assert h.timers == []


# --- dead letters again


def mended_later(seen: Seen, **given: Any) -> Plugin[Any]:
    plugin = Plugin("mended")

    @plugin.on(Message, attempts=1, **given)
    async def work(message: Message, ctx: Context) -> None:
        seen.append((message.text, message.late))
        ctx.reply(f"got {message.text}")
        if message.text == "bad" and len(seen) < 3:
            raise ValueError("bug")

    return plugin


async def test_a_dead_letter_is_tried_again_by_itself_with_new_keys() -> None:
    seen: Seen = []
    async with Harness(mended_later(seen)) as h:
        await say(h, "bad", "good")
        await dispatcher(h).try_again(letter(h))
        await h.settle()
        assert seen == [("bad", False), ("good", False), ("bad", True)]
        assert h.texts == ["got good", "got bad"]
        assert h.journal.dropped == {1}


async def test_a_dead_letter_that_its_conversation_waits_behind_is_tried_again_in_its_place() -> None:
    seen: Seen = []
    async with Harness(mended_later(seen, on_dead="hold")) as h:
        await say(h, "bad", "good")
        assert seen == [("bad", False)]
        seen.append("mended")
        await dispatcher(h).try_again(letter(h))
        await h.settle()
        assert seen[2:] == [("bad", False), ("good", False)]
        assert h.texts == ["got bad", "got good"]


# --- replays


def counting(seen: Seen) -> Plugin[Any]:
    plugin = Plugin("counting")

    @plugin.on(Message)
    async def count(message: Message, ctx: Context) -> None:
        seen.append(message.text)
        ctx.state.put("count", await ctx.state.get("count", int, 0) + 1)
        ctx.reply(f"got {message.text}")

    return plugin


async def test_a_replay_handles_recorded_events_again_in_order_before_what_is_new() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "1", "2", "3")
        replayed = asyncio.ensure_future(dispatcher(h).rewind("counting", "me", 1, 1))
        await asyncio.sleep(0)
        await say(h, "4")
        assert await replayed == 2
        await h.settle()
        assert seen == ["1", "2", "3", "2", "3", "4"]
        assert h.texts == [f"got {n}" for n in (1, 2, 3, 2, 3, 4)]
        assert h.state("count", int) == 6
        assert h.pending == 0


async def test_a_replay_that_begins_before_another_has_ended_goes_as_far_as_that() -> None:
    seen: Seen = []
    go = asyncio.Event()
    plugin = Plugin("counting")

    @plugin.on(Message)
    async def work(message: Message, ctx: Context) -> None:
        seen.append(message.text)
        if len(seen) == 6:
            await go.wait()
        ctx.reply(f"heard {message.text}")

    async with Harness(plugin) as h:
        await say(h, "1", "2", "3", "4")
        dispatcher(h).rewind("counting", "me", 1, 0)
        while len(seen) < 6:
            await asyncio.sleep(0)
        dispatcher(h).rewind("counting", "me", 1, 0)
        go.set()
        await h.settle()
        assert seen == ["1", "2", "3", "4", "1", "2", "1", "2", "3", "4"]
        assert h.texts[4:] == [f"heard {text}" for text in ("1", "2", "1", "2", "3", "4")]


async def test_a_replay_never_gets_between_the_events_of_a_batch_that_runs() -> None:
    seen: Seen = []
    go = asyncio.Event()
    plugin = Plugin("batcher")

    @plugin.on(Message, batch=3, settle_s=0.0)
    async def together(messages: tuple[Message, ...], ctx: Context) -> None:
        seen.append([message.text for message in messages])
        await go.wait()
        if len(seen) == 1:
            raise RetryLater(1)

    async with Harness(plugin) as h:
        for text in "123":
            await h.message(text, settle=False)
        while not seen:
            await asyncio.sleep(0)
        replayed = dispatcher(h).rewind("batcher", "me", 1, 1)
        go.set()
        await h.settle()
        assert not replayed.done()
        await h.advance(2)
        assert await replayed == 2
        assert seen == [["1", "2", "3"], ["1", "2", "3"], ["2", "3"]]
        assert h.pending == 0
        assert dispatcher(h).undispatched == 0


async def test_a_replay_survives_a_crash_and_repeats_no_send() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "1", "2", "3")
        h.journal.dies_at_next_fate = False
        await dispatcher(h).rewind("counting", "me", 1, 0)
        h.crash_after_handler()
        await h.settle()
        await h.settle()
        assert seen[3] == "1"
        assert h.texts == [f"got {n}" for n in (1, 2, 3, 1, 2, 3)]
        await dispatcher(h).rewind("counting", "me", 1, 2)
        await h.settle()
        assert h.texts[6:] == ["got 3"]


async def test_a_replay_right_after_a_start_knows_nothing_of_what_failed_before_it() -> None:
    attempts: list[tuple[str | None, int]] = []
    plugin = Plugin("counting")

    @plugin.on(Message)
    async def work(message: Message, ctx: Context) -> None:
        attempts.append((message.text, ctx.attempt))
        if message.text == "2" and len(attempts) == 2:
            raise GiveUp("not now")

    async with Harness(plugin, on_dead="hold") as h:
        await say(h, "1", "2")
        await h.crash(settle=False)
        await dispatcher(h).rewind("counting", "me", 1, 0)
        await h.settle()
        assert attempts == [("1", 1), ("2", 1), ("1", 1), ("2", 1)]
        assert dispatcher(h).standing("counting")["held"] == []


async def test_a_replay_from_beyond_the_end_does_nothing() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "1")
        assert await dispatcher(h).rewind("counting", "me", 1, 99) == 0
        await say(h, "2")
        assert seen == ["1", "2"]


async def test_a_rehearsal_shows_effects_and_has_none() -> None:
    seen: Seen = []
    plugin = counting(seen)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        """Somebody to remind."""

    @plugin.on(Message, text="3")
    async def third(message: Message, ctx: Context) -> None:
        sent = await ctx.send_now("@boss", "third")
        ctx.remind(5, data=sent.id)
        ctx.outcome("counted")

    async with Harness(plugin) as h:
        await say(h, "3")
        before = (h.sent, dict(h.journal.values), h.timers)
        shown = await dispatcher(h).rehearse("counting", (await h.journal.read_lane(1, 0, 1))[0])
        assert shown is not None
        assert [send.content.text for send in shown.sends] == ["got 3"]
        assert [send.content.text for send in shown.now] == ["third"]
        assert shown.puts == {(1, "count"): b"2"}
        assert [reminder.data for reminder in shown.reminders] == [b'"rehearsal-1"']
        assert shown.outcomes == [("counted", None)]
        assert shown.failure is None
        await h.settle()
        assert (h.sent, h.journal.values, h.timers) == before


async def test_a_rehearsal_makes_the_calls_that_read_and_none_that_changes() -> None:
    plugin = Plugin("calling")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply((await ctx.api.agents.get(message.sender)).handle)
        await ctx.api.contacts.add(message.sender)

    async with Harness(plugin) as h:
        h.api.answers("agents.get", {"handle": "peer"})
        h.api.answers("contacts.add")
        await say(h, "1")
        shown = await dispatcher(h).rehearse("calling", (await h.journal.read_lane(1, 0, 1))[0])
        assert shown is not None
        assert [send.content.text for send in shown.sends] == ["peer"]
        assert shown.failure is not None
        assert "ctx.api.contacts.add is not made in a rehearsal" in str(shown.failure.error)
        assert [call.name for call in h.api.calls] == ["agents.get", "contacts.add", "agents.get"]


# --- outcomes


async def test_an_outcome_is_committed_with_its_turn_or_not_at_all() -> None:
    plugin = Plugin("noting")

    @plugin.on(Message)
    async def note(message: Message, ctx: Context) -> None:
        ctx.outcome("seen", {"text": message.text})
        if ctx.attempt == 1:
            raise RetryLater(1)

    async with Harness(plugin) as h:
        await h.message("a")
        assert h.outcomes == []
        await h.advance(2)
        assert [(o.word, o.data, o.first, o.last) for o in h.outcomes] == [("seen", b'{"text":"a"}', 1, 1)]


# --- stale mail


async def test_of_stale_mail_only_the_newest_is_handled_and_the_rest_is_told() -> None:
    seen: Seen = []
    async with Harness(counting(seen), catch_up=CatchUp(policy="latest", after_s=60)) as h:
        await say(h, "1", "2", "3", created_at=past(h, 600))
        assert seen == []
        await h.advance(3)
        assert seen == ["3"]
        assert [(o.word, o.first, o.last) for o in h.outcomes] == [("passed", 1, 2)]
        assert b"stale" in (h.outcomes[0].data or b"")
        assert h.pending == 0
        await say(h, "4", "5")
        assert seen == ["3", "4", "5"]


async def test_a_digest_tells_stale_mail_in_one_piece() -> None:
    seen: Seen = []
    plugin = counting(seen)

    @plugin.on(Digest)
    async def missed(digest: Digest, ctx: Context) -> None:
        seen.append(([m.text for m in digest.messages], digest.count, digest.first_seq, digest.last_seq))
        ctx.reply(f"sorry for the silence on {digest.count} messages")

    async with Harness(plugin, catch_up=CatchUp(policy="digest", after_s=60, digest_max=2)) as h:
        await say(h, "1", "2", "3", created_at=past(h, 600))
        await h.advance(3)
        assert seen == [(["2", "3"], 3, 1, 3)]
        assert h.texts == ["sorry for the silence on 3 messages"]
        assert h.sent[0].target == "@peer"
        assert h.pending == 0


async def test_who_takes_no_digests_gets_every_message() -> None:
    seen: Seen = []
    async with Harness(counting(seen), catch_up=CatchUp(policy="digest", after_s=60)) as h:
        await say(h, "1", "2", created_at=past(h, 600))
        assert seen == ["1", "2"]


async def test_held_stale_mail_waits_for_a_decision_and_then_all_of_it_is_handled() -> None:
    seen: Seen = []
    async with Harness(counting(seen), catch_up=CatchUp(policy="hold", after_s=60)) as h:
        await say(h, "1", "2", created_at=past(h, 600))
        await h.advance(3)
        assert seen == []
        assert [pause.reason for pause in dispatcher(h).pauses()] == ["held: stale mail"]
        await h.crash()
        await say(h, "3")
        await h.advance(3)
        assert seen == []
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["1", "2", "3"]
        assert h.journal.paused == {}


async def test_who_only_watches_and_holds_stale_mail_by_a_policy_of_its_own_goes_on_when_it_is_told_to() -> None:
    seen: Seen = []
    plugin = Plugin("watching", watches=True)

    @plugin.on(Message)
    async def look(message: Message, ctx: Context) -> None:
        seen.append(message.text)

    h = Harness(plugin)
    h._settings = msgspec.structs.replace(h._settings, catch_up=CatchUp(policy="hold", after_s=60))
    async with h:
        await say(h, "1", created_at=past(h, 600))
        await h.advance(3)
        assert seen == []
        assert dispatcher(h).pause_for("watching", 1).reason == "held: stale mail"
        await dispatcher(h).resume(1)
        await say(h, "2")
        assert seen == ["1", "2"]


async def test_a_failure_does_not_make_an_event_stale() -> None:
    seen: Seen = []
    plugin = Plugin("retrying")

    @plugin.on(Message)
    async def work(message: Message, ctx: Context) -> None:
        seen.append(message.text)
        if message.text == "1" and ctx.attempt == 1:
            raise RetryLater(600)

    async with Harness(plugin, catch_up=CatchUp(policy="latest", after_s=60)) as h:
        await say(h, "1")
        await h.advance(700)
        assert seen == ["1", "1"]


# --- pauses


def paused(h: Harness, until: float | None = None) -> Paused:
    return Paused(
        number=1, identity="me", conversation="conv_peer", at=h.clock.unix(), until=until, reason="by command"
    )


async def test_in_a_paused_conversation_nothing_runs_and_nothing_is_lost() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "1")
        await dispatcher(h).pause(paused(h))
        await say(h, "2", "3")
        await say(h, "other", sender="@other")
        assert seen == ["1", "other"]
        await h.crash()
        await say(h, "4")
        assert seen == ["1", "other"]
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["1", "other", "2", "3", "4"]


async def test_a_pause_ends_at_its_time() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "1")
        await dispatcher(h).pause(paused(h, until=h.clock.unix() + 60))
        await say(h, "2")
        await h.advance(59)
        assert seen == ["1"]
        await h.advance(2)
        assert seen == ["1", "2"]
        assert h.journal.paused == {}


async def test_who_only_watches_goes_on_while_a_person_speaks_but_not_when_it_was_told_to_stop() -> None:
    seen: Seen = []
    plugin = Plugin("watching", watches=True)

    @plugin.on(Message)
    async def look(message: Message, ctx: Context) -> None:
        seen.append(message.text)

    async with Harness(plugin, catch_up=CatchUp(policy="latest", after_s=60)) as h:
        await say(h, "1", "2", created_at=past(h, 600))
        person = Paused(
            number=1, identity="me", conversation="conv_peer", at=0.0, until=None, reason="a person", watchers=False
        )
        await dispatcher(h).pause(person)
        assert dispatcher(h).pause_for("watching", 1) is None
        await say(h, "3")
        assert seen == ["1", "2", "3"]
        await dispatcher(h).pause(paused(h))
        assert dispatcher(h).pause_for("watching", 1) == paused(h)
        await say(h, "4")
        assert seen == ["1", "2", "3"]


async def test_a_timer_of_a_paused_conversation_waits_with_it() -> None:
    seen: Seen = []
    plugin = counting(seen)

    @plugin.on(Message, text="remind")
    async def remind(message: Message, ctx: Context) -> None:
        ctx.remind(5)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        seen.append("woken")

    async with Harness(plugin) as h:
        await say(h, "remind")
        await dispatcher(h).pause(paused(h))
        await h.advance(60)
        assert seen == ["remind"]
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["remind", "woken"]


async def test_a_paused_conversation_costs_no_memory() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await say(h, "0")
        await dispatcher(h).pause(paused(h))
        await say(h, *map(str, range(1, 200)))
        assert dispatcher(h).undispatched <= 1
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == [str(n) for n in range(200)]


# --- loops


async def test_two_agents_that_only_answer_each_other_are_stopped_and_their_mail_is_kept() -> None:
    seen: Seen = []
    async with Harness(counting(seen), loop_guard=LoopGuard(answers_max=5, window_s=60)) as h:
        for n in range(8):
            await say(h, str(n), agent=True)
        assert seen == list("01234")
        (pause,) = dispatcher(h).pauses()
        assert "5 answers to @peer within 60 s" in pause.reason
        await say(h, "x", sender="@other", agent=True)
        assert seen[-1] == "x"
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["0", "1", "2", "3", "4", "x", "5", "6", "7"]


async def test_a_replay_is_no_loop_however_long() -> None:
    seen: Seen = []
    async with Harness(counting(seen), loop_guard=LoopGuard(answers_max=5, window_s=60)) as h:
        for n in range(12):
            await say(h, str(n), agent=True)
            await h.advance(30)
        await dispatcher(h).rewind("counting", "me", 1, 0)
        await h.settle()
        assert len(seen) == 24
        assert dispatcher(h).pauses() == []


async def test_the_budget_outlives_the_process() -> None:
    seen: Seen = []
    async with Harness(counting(seen), loop_guard=LoopGuard(answers_max=5, window_s=60)) as h:
        for n in "012":
            await say(h, n, agent=True)
            await h.advance(1)
        await h.crash()
        await say(h, *"3456", agent=True)
        assert seen == list("01234")


async def test_people_may_ask_as_fast_as_they_like() -> None:
    seen: Seen = []
    async with Harness(counting(seen), loop_guard=LoopGuard(answers_max=5, window_s=60)) as h:
        await say(h, *map(str, range(50)))
        assert len(seen) == 50


async def test_a_chain_of_answers_is_stopped_however_slow() -> None:
    seen: Seen = []
    async with Harness(counting(seen), loop_guard=LoopGuard(hops_max=10)) as h:
        await h.message("a", agent=True, metadata={"agentd_hops": 9})
        await h.message("b", agent=True, metadata={"agentd_hops": 10})
        await h.message("c", agent=True, metadata={"agentd_hops": 12})
        assert seen == ["a", "b"]


# --- generations


async def test_another_generation_handles_what_comes_from_then_on_and_the_old_one_finishes() -> None:
    seen: Seen = []
    go = asyncio.Event()

    def generation(name: str) -> Plugin[Any]:
        plugin = Plugin("counting")

        @plugin.on(Message)
        async def work(message: Message, ctx: Context) -> None:
            if message.text == "slow":
                await go.wait()
            seen.append((name, message.text))
            ctx.state.put("count", await ctx.state.get("count", int, 0) + 1)

        return plugin

    async with Harness(generation("old")) as h:
        await h.message("slow", sender="@a", settle=False)
        await h.message("waits", sender="@a", settle=False)
        while not dispatcher(h).standing("counting")["running"]:
            await asyncio.sleep(0)
        new = await h.load(generation("new"))
        old = dispatcher(h).swap(new)
        await h.message("x", sender="@b", settle=False)
        go.set()
        await old.turns.idle()
        await h.settle()
        assert seen == [("new", "x"), ("old", "slow"), ("new", "waits")]
        assert h.state("count", int, conversation="conv_a") == 2


async def test_another_generation_sees_what_the_old_one_has_on_its_way_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Seen = []
    on_its_way: list[asyncio.Future[None]] = []

    def generation() -> Plugin[Any]:
        plugin = Plugin("counting")

        @plugin.on(Message)
        async def work(message: Message, ctx: Context) -> None:
            seen.append(count := await ctx.plugin_state.get("count", int, 0) + 1)
            ctx.plugin_state.put("count", count)

        return plugin

    async with Harness(generation()) as h:
        commit = h.journal.commit

        def slowly(*changes: Change) -> asyncio.Future[None]:
            if not on_its_way and any(isinstance(change, StatePut) for change in changes):
                on_its_way.append(asyncio.get_running_loop().create_future())
                return on_its_way[0]
            return commit(*changes)

        monkeypatch.setattr(h.journal, "commit", slowly)
        await h.message("1", sender="@a", settle=False)
        while not on_its_way:
            await asyncio.sleep(0)
        dispatcher(h).swap(await h.load(generation()))
        await h.message("2", sender="@b", settle=False)
        while len(seen) < 2:
            await asyncio.sleep(0)
        on_its_way[0].set_result(None)
        await h.settle()
        assert seen == [1, 2]


async def test_what_the_new_generation_does_not_want_any_more_is_passed_over() -> None:
    seen: Seen = []
    first = Plugin("counting")
    go = asyncio.Event()

    @first.on(Message)
    async def old(message: Message, ctx: Context) -> None:
        await go.wait()
        seen.append(("old", message.text))

    second = Plugin("counting")

    @second.on(Message, text="new")
    async def new(message: Message, ctx: Context) -> None:
        seen.append(("new", message.text))

    async with Harness(first) as h:
        for text in ("1", "2", "new 3"):
            await h.message(text, settle=False)
        while not dispatcher(h).standing("counting")["running"]:
            await asyncio.sleep(0)
        dispatcher(h).swap(await h.load(second))
        go.set()
        await h.settle()
        assert seen == [("old", "1"), ("new", "new 3")]
        assert h.pending == 0


@pytest.mark.parametrize("size", [0, 1_001, "3"])
async def test_an_impossible_batch_is_refused_at_load(size: Any) -> None:
    plugin = Plugin("p")
    plugin.on(Message, batch=size)(lambda messages, ctx: None)
    with pytest.raises(Exception, match="give a number from 1 to 1000"):
        async with Harness(plugin):
            pass


async def test_an_event_that_was_set_aside_and_cannot_be_read_any_more_is_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin = Plugin("p")

    @plugin.on(Message, on_dead="detach", attempts=1)
    async def handle(message: Message, ctx: Context) -> None:
        raise ValueError("not now")

    async with Harness(plugin) as h:

        def revive(stored: StoredRecord) -> Event:
            raise ValueError("written by a version that is forgotten")

        await h.message("a")
        assert [each.position for each in h.timers] == [1]
        assert h.dead == []
        monkeypatch.setattr(h.journal, "revive", revive)
        await h.crash()
        await h.advance(3_600)
        assert h.timers == []
        [dead] = h.dead
        assert dead.position == 1
        assert "cannot be read any more: ValueError: written by a version that is forgotten" in dead.error
