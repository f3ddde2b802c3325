"""Identities and plugins come and go while turns run: nothing is lost, repeated or out of order for it."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.config import CatchUp, Conduct, LoopGuard
from agentd.core.events import Timer
from agentd.errors import GiveUp, RetryLater, StillRunning
from agentd.journal.storage import Paused
from agentd.plugin import Context, Message, Plugin
from agentd.testing import Harness

Seen = list[Any]


def dispatcher(h: Harness) -> Any:
    return h._dispatcher


async def serve(h: Harness, *plugins: str, identity: str = "me", **conduct: Any) -> list[str]:
    gone = await dispatcher(h).serve(identity, plugins, Conduct(**conduct))
    return [plugin for _, plugin in await dispatcher(h).until_left([(identity, name) for name in gone], 0.05)]


async def forget(h: Harness, identity: str = "me") -> list[str]:
    left: list[str] = await dispatcher(h).forget(identity, 0.05)
    return left


def counting(seen: Seen, name: str = "counting", **given: Any) -> Plugin[Any]:
    plugin = Plugin(name)

    @plugin.on(Message, **given)
    async def count(message: Message, ctx: Context) -> None:
        seen.append(message.text)
        if message.text == "fails" and ctx.attempt == 1:
            raise RetryLater(60)
        if message.text == "poison":
            raise GiveUp("poison")
        ctx.reply(f"{name} {message.text}")

    return plugin


def waiting(seen: Seen, go: asyncio.Event) -> Plugin[Any]:
    plugin = Plugin("waiting")

    @plugin.on(Message)
    async def wait(message: Message, ctx: Context) -> None:
        seen.append(message.text)
        if message.text == "slow":
            await go.wait()
        if message.text == "slow and bad":
            await go.wait()
            raise RuntimeError("bad")
        ctx.reply(f"done {message.text}")

    return plugin


async def until_running(h: Harness, plugin: str) -> None:
    while not dispatcher(h).standing(plugin)["running"]:
        await asyncio.sleep(0)


# --- an identity goes and comes back


async def test_nothing_of_a_forgotten_identity_runs_and_all_of_it_does_when_it_is_back() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await h.message("1")
        assert await forget(h) == []
        for text in ("2", "3"):
            await h.message(text)
        assert seen == ["1"]
        assert await serve(h, "counting") == []
        await h.message("4")
        assert seen == ["1", "2", "3", "4"]
        assert h.pending == 0
        assert dispatcher(h).handled == {"me": 4}
        assert dispatcher(h).undispatched == dispatcher(h).undispatched_bytes == 0


async def test_other_identities_go_on_while_one_is_forgotten() -> None:
    seen: Seen = []
    async with Harness(counting(seen), others=["other"]) as h:
        await h.message("1", identity="other")
        await forget(h)
        await h.message("2", identity="other")
        assert seen == ["1", "2"]
        assert dispatcher(h).handled == {"other": 2}


async def test_a_turn_under_way_ends_with_its_effects_and_what_waits_behind_it_is_given_back() -> None:
    seen: Seen = []
    go = asyncio.Event()
    async with Harness(waiting(seen, go)) as h:
        for text in ("slow", "next", "last"):
            await h.message(text, settle=False)
        await until_running(h, "waiting")
        leaving = asyncio.create_task(dispatcher(h).forget("me", 10))
        await asyncio.sleep(0)
        go.set()
        assert await leaving == []
        assert (seen, h.texts) == (["slow"], ["done slow"])
        assert dispatcher(h).undispatched == 0
        await serve(h, "waiting")
        await h.settle()
        assert seen == ["slow", "next", "last"]


async def test_a_plugin_is_not_given_an_identity_back_whose_last_turn_has_not_ended() -> None:
    seen: Seen = []
    go = asyncio.Event()
    async with Harness(waiting(seen, go)) as h:
        for text in ("slow", "next"):
            await h.message(text, settle=False)
        await until_running(h, "waiting")
        assert await forget(h) == ["waiting"]
        with pytest.raises(StillRunning, match="waiting still runs for identity me"):
            await serve(h, "waiting")
        go.set()
        await h.settle()
        assert await serve(h, "waiting") == []
        await h.settle()
        assert seen == ["slow", "next"]
        assert h.pending == 0


async def test_a_turn_that_fails_after_its_identity_has_gone_is_tried_again_only_when_that_is_back() -> None:
    seen: Seen = []
    go = asyncio.Event()
    async with Harness(waiting(seen, go)) as h:
        await h.message("slow and bad", settle=False)
        await until_running(h, "waiting")
        assert await forget(h) == ["waiting"]
        go.set()
        await h.settle()
        await h.advance(100)
        assert len(seen) == 1
        await serve(h, "waiting")
        await h.settle()
        await h.advance(100)
        assert len(seen) == 5, "the attempt before counts"
        assert h.dead[0].attempts == 5


async def test_a_delayed_event_waits_for_its_time_and_its_attempt_counts() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await h.message("fails")
        await h.message("behind")
        await forget(h)
        await h.advance(30)
        await serve(h, "counting")
        await h.advance(20)
        assert seen == ["fails"]
        await h.advance(20)
        assert seen == ["fails", "fails", "behind"]


async def test_a_held_conversation_is_held_when_its_identity_is_back() -> None:
    seen: Seen = []
    async with Harness(counting(seen, on_dead="hold")) as h:
        await h.message("poison")
        await h.message("behind")
        await forget(h)
        assert dispatcher(h).standing("counting")["held"] == []
        await serve(h, "counting")
        await h.settle()
        assert seen == ["poison"]
        assert dispatcher(h).release("counting", "me", "conv_peer")
        await h.settle()
        assert seen == ["poison", "behind"]


async def test_a_paused_conversation_is_paused_when_its_identity_is_back() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await h.message("1")
        await dispatcher(h).pause(
            Paused(number=1, identity="me", conversation="conv_peer", at=0.0, until=None, reason="test")
        )
        await h.message("2")
        await forget(h)
        assert dispatcher(h).pauses() == []
        await serve(h, "counting")
        await h.settle()
        assert seen == ["1"]
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["1", "2"]


async def test_timers_of_a_forgotten_identity_wait_for_its_return() -> None:
    seen: Seen = []
    plugin = Plugin("timed")

    @plugin.on(Message)
    async def ask(message: Message, ctx: Context) -> None:
        ctx.remind(60)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        seen.append(("timer", h.clock.monotonic()))

    @plugin.every("30s")
    async def beat(timer: Timer, ctx: Context) -> None:
        seen.append(("beat", timer.identity))

    async with Harness(plugin) as h:
        await h.message("wake me")
        await forget(h)
        await h.advance(100)
        assert seen == []
        await serve(h, "timed")
        await h.settle()
        assert sorted(seen) == [("beat", "me"), ("timer", 100.0)]


async def test_a_replay_that_waits_in_a_lane_fails_when_that_goes() -> None:
    seen: Seen = []
    go = asyncio.Event()
    async with Harness(waiting(seen, go)) as h:
        await h.message("1")
        await h.message("slow", settle=False)
        await until_running(h, "waiting")
        replay = dispatcher(h).rewind("waiting", "me", 1, 0)
        await asyncio.sleep(0)
        assert await forget(h) == ["waiting"]
        go.set()
        with pytest.raises(Exception, match="does not serve this identity any more"):
            await replay


# --- plugins come to an identity, and go


async def test_a_plugin_that_is_new_to_an_identity_begins_at_the_end_of_the_log() -> None:
    first: Seen = []
    second: Seen = []
    async with Harness(counting(first, "first")) as h:
        await h.message("1")
        await dispatcher(h).add(await h.load(counting(second, "second")))
        await serve(h, "first", "second")
        await h.message("2")
        await serve(h, "second")
        await h.message("3")
        assert (first, second) == (["1", "2"], ["2", "3"])
        await serve(h, "first", "second")
        await h.message("4")
        assert (first, second) == (["1", "2", "3", "4"], ["2", "3", "4"]), "it goes on where it stood"
        assert h.pending == 0
        assert dispatcher(h).handled == {"me": 4}


async def test_what_comes_while_a_plugin_joins_is_its_own_in_order() -> None:
    first: Seen = []
    second: Seen = []
    async with Harness(counting(first, "first")) as h:
        await h.message("0")
        await dispatcher(h).add(await h.load(counting(second, "second")))
        await serve(h, "first", "second")
        await serve(h, "first")
        for n in range(1, 6):
            await h.message(str(n), settle=False)
        joining = asyncio.create_task(serve(h, "first", "second"))
        for n in range(6, 20):
            await h.message(str(n), settle=False)
            await asyncio.sleep(0)
        await joining
        await h.settle()
        assert second == [str(n) for n in range(1, 20)]
        assert first == [str(n) for n in range(20)]
        assert h.pending == 0


async def test_what_comes_while_it_is_counted_how_far_behind_a_plugin_is_counts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: Seen = []
    go, counting_begun, counted = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with Harness(counting([], "first")) as h:
        await dispatcher(h).add(await h.load(waiting(seen, go)))
        await serve(h, "first", "waiting")
        await h.message("0")
        await serve(h, "first")
        await h.message("1")
        count = h.journal.count_between

        async def slowly(conversation: int, after: int, upto: int) -> int:
            counting_begun.set()
            await counted.wait()
            return await count(conversation, after, upto)

        monkeypatch.setattr(h.journal, "count_between", slowly)
        await serve(h, "first", "waiting")
        await counting_begun.wait()
        await h.message("slow", settle=False)
        counted.set()
        while "slow" not in seen:
            await asyncio.sleep(0)
        assert h.pending == 1
        go.set()
        await h.message("2")
        assert seen == ["0", "1", "slow", "2"]
        assert h.pending == 0


async def test_the_conversations_of_a_plugin_that_is_busy_with_another_do_not_wait_for_one_that_joins() -> None:
    seen: Seen = []
    go = asyncio.Event()
    async with Harness(waiting(seen, go)) as h:
        await h.message("slow", settle=False)
        await until_running(h, "waiting")
        second: Seen = []
        await dispatcher(h).add(await h.load(counting(second, "second")))
        await serve(h, "waiting", "second")
        await h.message("next", settle=False)
        while not second:
            await asyncio.sleep(0)
        assert (seen, second) == (["slow"], ["next"])
        assert h.pending == 2
        go.set()
        await h.settle()
        assert h.pending == 0


async def test_what_only_a_plugin_that_left_had_not_handled_is_handled() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        second: Seen = []
        await dispatcher(h).add(await h.load(counting(second, "second")))
        await serve(h, "counting", "second")
        await h.message("fails")
        assert h.pending == 1
        await serve(h)
        assert h.pending == 0


async def test_a_plugin_that_serves_nobody_can_be_removed_and_come_back() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await h.message("1")
        await serve(h)
        removed = dispatcher(h).remove("counting")
        await removed.turns.idle()
        assert dispatcher(h).standing("counting") == {}
        await h.message("2")
        await dispatcher(h).add(await h.load(counting(seen)))
        await serve(h, "counting")
        await h.message("3")
        assert seen == ["1", "2", "3"]
        assert h.texts == ["counting 1", "counting 2", "counting 3"]


async def test_plugins_speak_only_for_identities_that_they_serve_now() -> None:
    plugin = Plugin("speaker")

    @plugin.on(Message)
    async def say(message: Message, ctx: Context) -> None:
        ctx.send("@x", "hello", identity="other")

    async with Harness(plugin, others=["other"], attempts=1) as h:
        await h.message("1")
        await forget(h, "other")
        await h.message("2")
        assert [send.identity for send in h.sent] == ["other"]
        assert "other" in h.dead[0].error
        await serve(h, "speaker", identity="other")
        await h.message("3")
        assert [send.identity for send in h.sent] == ["other"] * 2


async def test_an_identity_carries_itself_as_it_was_told_last() -> None:
    seen: Seen = []
    async with Harness(counting(seen)) as h:
        await serve(h, "counting", loop_guard=LoopGuard(answers_max=2, window_s=60))
        for n in range(4):
            await h.message(str(n), agent=True)
        assert seen == ["0", "1"]
        await serve(h, "counting", catch_up=CatchUp(policy="latest", after_s=10, settle_s=1))
        await h.advance(20)
        await dispatcher(h).resume(1)
        await h.settle()
        assert seen == ["0", "1", "2", "3"], "what a pause kept is not stale"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["message", "fails", "forget", "serve", "one", "both", "swap", "time"]), max_size=30))
async def test_whoever_comes_and_goes_every_event_is_handled_in_order_and_answered_once(steps: list[str]) -> None:
    seen: dict[str, Seen] = defaultdict(list)
    async with Harness(counting(seen["first"], "first")) as h:
        await dispatcher(h).add(await h.load(counting(seen["second"], "second")))
        await serve(h, "first", "second")
        texts = []
        for n, step in enumerate(steps):
            match step:
                case "message" | "fails":
                    texts.append(step if step == "fails" else str(n))
                    await h.message(texts[-1], settle=n % 3 == 0)
                case "forget" if "me" in dispatcher(h).handled:
                    await h.settle()
                    assert await forget(h) == []
                case "serve" | "both" | "one":
                    await h.settle()
                    assert await serve(h, *["first", "second"][: 1 if step == "one" else 2]) == []
                case "swap":
                    dispatcher(h).swap(await h.load(counting(seen["first"], "first")))
                case "time":
                    await h.advance(40)
        await h.settle()
        await serve(h, "first", "second")
        await h.settle()
        for _ in texts:
            await h.advance(60)
        for name in ("first", "second"):
            expected = [each for text in texts for each in ([text, text] if text == "fails" else [text])]
            assert seen[name] == expected
            assert [each for each in h.texts if each.startswith(name)] == [f"{name} {text}" for text in texts]
        assert h.pending == 0
        assert dispatcher(h).handled == {"me": len(texts)}
        assert dispatcher(h).undispatched == dispatcher(h).undispatched_bytes == 0
