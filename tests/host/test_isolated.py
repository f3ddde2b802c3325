"""A plugin in a process of its own: the same turns, and what becomes of them when the process does not live."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import apis
from agentd.config import KeySource, PluginSettings
from agentd.core.events import Message, Presence, Sent, Timer
from agentd.dispatcher.fates import told
from agentd.errors import ConfigError, GiveUp, NotSent, PluginLoadError, Refused, RetryLater, Unavailable
from agentd.host.calls import WorkerDied
from agentd.host.context import TurnContext, cause_key
from agentd.host.isolated import Isolated, load_hosted
from agentd.host.lifecycle import load
from agentd.host.turns import DeadlinePassed, Failure

PRELUDE = """
import asyncio
import logging
import os
import sys
import threading
import time

import msgspec

from agentd.plugin import *

plugin = Plugin("trial")

"""


def message(text: str = "hello", **changes: Any) -> Message:
    plain = {"identity": "me", "conversation": "conv_1", "seq": 1, "id": f"msg_{text}", "sender": "bob", "text": text}
    return Message(**{**plain, "answer_to": "@bob", **changes})


class Trial:
    """Isolated plugins in a folder, and what they stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[tuple[int, str], bytes] = {}
        self.plugins: list[Isolated] = []

    async def read(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return self.stored.get((conversation, key))

    def settings(self, source: str, **settings: Any) -> PluginSettings:
        (self.folder / "trial.py").write_text(PRELUDE + textwrap.dedent(source))
        return PluginSettings(use="./trial.py", **{"isolate": "process", **settings})

    async def load(self, source: str, **settings: Any) -> Isolated:
        plugin = await load_hosted("trial", self.settings(source, **settings), self.folder, self.read)
        assert isinstance(plugin, Isolated)
        self.plugins.append(plugin)
        return plugin

    async def start(self, source: str, **settings: Any) -> Isolated:
        plugin = await self.load(source, **settings)
        await plugin.setup()
        return plugin

    async def refusal(self, source: str, **settings: Any) -> Exception:
        """What the daemon is told when the plugin is loaded and set up."""
        with pytest.raises((PluginLoadError, ConfigError)) as refused:
            await self.start(source, **settings)
        return refused.value

    async def refusal_in_process(self, source: str, **settings: Any) -> Exception:
        with pytest.raises((PluginLoadError, ConfigError)) as refused:
            plugin = load("trial", self.settings(source, isolate="none", **settings), self.folder, self.read)
            try:
                await plugin.setup()
            finally:
                await plugin.teardown()
        return refused.value


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[Trial]:
    made = Trial(tmp_path)
    yield made
    for plugin in made.plugins:
        await plugin.teardown()


async def run(
    plugin: Isolated, event: Any = None, *, attempt: int = 1, conversation: int | None = 7
) -> tuple[Failure | None, TurnContext[Any]]:
    event = event or message()
    ctx: TurnContext[Any] = TurnContext(plugin, event, conversation, attempt)
    return await plugin.turns.run(event, plugin.handlers.match(event), ctx, lambda: None), ctx


async def texts(plugin: Isolated, event: Any = None, **given: Any) -> list[str | None]:
    """What a turn that does its work says."""
    failure, ctx = await run(plugin, event, **given)
    assert failure is None, failure
    return [send.content.text for send in ctx.sends or ()]


async def error_of(plugin: Isolated, event: Any = None, **given: Any) -> BaseException:
    failure, ctx = await run(plugin, event, **given)
    assert failure is not None
    assert not (ctx.sends or ctx.puts or ctx.reminders)
    return failure.error


class Owner:
    """Writes down what a turn says of itself before it ends."""

    def __init__(self, told: list[Any]) -> None:
        self._told = told

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        self._told.append(noted)

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        self._told.append("before")


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def pid_of(plugin: Isolated) -> int:
    pid = plugin.standing()["pid"]
    assert isinstance(pid, int)
    return pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


ECHO = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    ctx.reply(message.text)
"""


# --- the same turns


def held() -> tuple[set[str], set[str]]:
    """This process's descriptors, and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return set(os.listdir("/proc/self/fd")), set(children)


async def test_a_start_that_is_broken_off_leaves_neither_a_process_nor_a_descriptor(trial: Trial) -> None:
    await trial.load(ECHO)
    before = held()
    for passes in range(6):
        loading = asyncio.ensure_future(trial.load(ECHO))
        for _ in range(passes):
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await until(lambda: held() == before)


async def test_it_gives_way_to_the_daemon_and_hears_none_of_its_interrupts(trial: Trial) -> None:
    pid = pid_of(await trial.start(ECHO))
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getsid(pid) == os.getsid(0), "the kernel may share out its time by session, whoever is nice in it"
    assert os.getpgid(pid) != os.getpgid(0), "a terminal interrupts a group"


async def test_a_turn_runs_in_another_process_and_stages_here(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def count(message: Message, ctx: Context) -> None:
            count = await ctx.state.get("count", int, 0) + 1
            ctx.state.put("count", count)
            assert await ctx.state.get("count", int) == count
            ctx.plugin_state.delete("gone")
            ctx.reply(f"{os.getpid()} {ctx.attempt} {ctx.name} {ctx.identity}", data={"n": 10**30})
        """
    )
    trial.stored[7, "count"] = b"41"
    failure, ctx = await run(plugin, message(data={"n": 10**30}, payload=b"\xff\x00"), attempt=3)
    assert failure is None
    assert ctx.puts == {(7, "count"): b"42", (0, "gone"): None}
    assert ctx.sends is not None
    [send] = ctx.sends
    assert send.content.text == f"{pid_of(plugin)} 3 trial me"
    assert send.content.data == {"n": 10**30}
    assert pid_of(plugin) != os.getpid()
    with pytest.raises(RuntimeError, match="ended"):
        ctx.reply("too late")


async def test_a_send_has_the_key_that_it_would_have_in_process(trial: Trial) -> None:
    source = ECHO
    isolated = await trial.start(source)
    plain = load("trial", trial.settings(source, isolate="none"), trial.folder, trial.read)
    await plain.setup()
    ctx: TurnContext[Any] = TurnContext(plain, message(), 7, 1)
    assert await plain.turns.run(ctx.event, plain.handlers.match(ctx.event), ctx, lambda: None) is None
    _, isolated_ctx = await run(isolated)
    assert isolated_ctx.sends == ctx.sends
    await plain.teardown()


async def test_many_turns_run_at_once_and_read_their_own_values(trial: Trial) -> None:
    plugin = await trial.start(
        """
        met = asyncio.Barrier(20)

        @plugin.on(Message)
        async def meet(message: Message, ctx: Context) -> None:
            value = await ctx.state.get("own", str)
            await met.wait()
            ctx.reply(f"{message.text} {value}")
        """,
        concurrency=20,
    )
    for number in range(20):
        trial.stored[number, "own"] = msgspec.json.encode(f"value {number}")
    said = await asyncio.gather(*(texts(plugin, message(str(n)), conversation=n) for n in range(20)))
    assert said == [[f"{number} value {number}"] for number in range(20)]


async def test_def_handlers_run_in_threads_and_may_wait(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        def handle(message: Message, ctx: Context) -> None:
            time.sleep(0.01)
            ctx.reply(f"{ctx.wait(ctx.state.get('a', int))} {threading.current_thread() is threading.main_thread()}")
        """
    )
    trial.stored[7, "a"] = b"5"
    assert await texts(plugin) == ["5 False"]


async def test_middlewares_wrap_the_turn_and_may_swallow_its_failure(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.middleware
        async def around(event, ctx):
            ctx.reply("before")
            try:
                yield
            except ValueError as error:
                ctx.reply(f"instead: {error}")

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            raise ValueError("no")
        """
    )
    assert await texts(plugin) == ["before", "instead: no"]


async def test_setup_and_teardown_run_in_the_worker_once_each(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.setup
        async def begin(ctx: PluginContext) -> None:
            ctx.log.info("set up in %d", os.getpid())
            open("setup", "x").write(str(os.getpid()))

        @plugin.teardown
        def end(ctx: PluginContext) -> None:
            open("teardown", "x").write(str(os.getpid()))
        """.replace('open("', f'open("{trial.folder}/')
    )
    pid = pid_of(plugin)
    await plugin.teardown()
    assert (trial.folder / "setup").read_text() == (trial.folder / "teardown").read_text() == str(pid)
    assert not is_running(pid)


async def test_settings_reach_the_plugin_as_its_struct(trial: Trial) -> None:
    plugin = await trial.start(
        """
        class Config(msgspec.Struct):
            greeting: str
            limits: dict[str, int] = {}

        plugin = Plugin("trial", config=Config, version="1.2")

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.reply(f"{ctx.config.greeting} {ctx.config.limits}")
        """,
        config={"greeting": "Hi", "limits": {"a": 1}},
    )
    assert plugin.version == "1.2"
    assert await texts(plugin) == ["Hi {'a': 1}"]


async def test_secrets_are_read_in_the_worker_and_told_nowhere(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVICE_KEY", "s3cret-of-the-service")
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.log.warning("the key is %s", ctx.secret("service"))
            if message.text == "fail":
                raise ValueError(f"refused {ctx.secret('service')}")
            ctx.reply(str(len(ctx.secret("service"))))
        """,
        secrets={"service": KeySource(env="SERVICE_KEY")},
    )
    assert await texts(plugin) == ["21"]
    failure, _ = await run(plugin, message("fail"))
    assert failure is not None
    shown = "".join(traceback.format_exception(failure.error))
    assert "refused [redacted]" in shown
    assert "s3cret" not in shown + caplog.text


async def test_state_is_bounded_as_in_process_and_says_when_it_is_full(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def keep(message: Message, ctx: Context) -> None:
            ctx.state.put(message.text, "x" * 600_000)
        """,
        state_max_mb=1,
    )
    failure, _ = await run(plugin)
    assert failure is None
    assert not plugin.state.full
    plugin.state.stored_bytes = lambda: 600_010
    assert "state_max_mb" in str(await error_of(plugin))
    assert plugin.state.full


async def test_calls_of_the_api_are_made_by_the_daemon_and_their_answers_and_refusals_come_back(trial: Trial) -> None:
    plugin = await trial.start(
        """
        from datetime import UTC, datetime

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            api = ctx.api
            assert api.platform == "agentchat"
            [said] = await api.conversations.history(message.conversation, after_seq=0)
            until = datetime(2026, 1, 2, tzinfo=UTC)
            await api.mutes.agent("bob", until)
            stored = await api.attachments.upload(b"\\xff\\x00", "a", "image/png", to="bob")
            content = await api.attachments.fetch(stored)
            rows = [row.handle async for row in api.directory.search("bo")]
            try:
                await api.groups.get("grp_gone")
            except Refused as error:
                ctx.reply(f"{said.data} {content} {rows} {error.status} {error.code} {error.details}")
            await api.conversations.typing(message.conversation)
        """
    )
    asked: list[tuple[str, dict[str, Any], str | None]] = []
    said = message("x", data={"n": 10**30})

    class Port:
        platform = "agentchat"

        async def ask(self, name: str, arguments: Any, key: str | None) -> Any:
            asked.append((name, dict(arguments), key))
            match name:
                case "conversations.history":
                    return (said,)
                case "mutes.agent":
                    return apis.MuteEntry(target_kind="agent", target_id="bob")
                case "attachments.upload":
                    return "att_1"
                case "attachments.fetch":
                    return b"\xff\x01"
                case "directory.search":
                    return () if arguments["offset"] else (apis.DirectoryRow(handle="bob"),)
                case "groups.get":
                    raise Refused(410, "GROUP_DELETED", "gone", {"group_id": "grp_gone"})
            raise Unavailable("no socket", 2.5)

    plugin.api_of = {"me": Port()}.get
    error = await error_of(plugin)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 2.5
    calls = {name: (arguments, key) for name, arguments, key in asked}
    assert calls["mutes.agent"][0] == {"handle": "bob", "until": datetime(2026, 1, 2, tzinfo=UTC)}
    assert calls["attachments.upload"][0]["content"] == b"\xff\x00"
    assert [name for name, _, key in asked if key is not None] == ["mutes.agent"]
    assert calls["mutes.agent"][1] == f"{cause_key('trial', message())}-a0"


async def test_an_answer_that_no_frame_can_hold_fails_the_turn_and_nothing_waits_for_it(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            await ctx.api.attachments.fetch("att_1")
        """
    )

    class Port:
        platform = "agentchat"

        async def ask(self, name: str, arguments: Any, key: str | None) -> Any:
            return bytes(200_000)

    plugin.api_of = {"me": Port()}.get
    monkeypatch.setattr("agentd.host.pipe.FRAME_MAX_BYTES", 100_000)
    assert "more than the 100,000 that may pass at once" in str(await error_of(plugin))


async def test_without_an_api_a_worker_is_told_so(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.api
        """
    )
    assert "offers plugins no calls" in str(await error_of(plugin))


async def test_send_now_is_sent_by_the_daemon_and_its_refusal_comes_back(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            try:
                sent = await ctx.send_now("@ann", message.text, identity="work")
            except NotSent as error:
                ctx.reply(f"{error.state} / {error}")
            else:
                ctx.reply(f"{sent.seq} {sent.client_msg_id}")
        """
    )

    async def send_now(send: Any) -> Sent:
        assert (send.target, send.identity) == ("@ann", "work")
        if send.content.text == "bad":
            raise NotSent("refused", "403 BLOCKED")
        return Sent(client_msg_id=send.client_msg_id, id="srv_1", conversation="conv_2", seq=9)

    plugin.send_now = send_now
    plugin.serves = frozenset({"me", "work"})
    [said] = await texts(plugin)
    assert said is not None
    assert said.startswith("9 agentd-")
    assert await texts(plugin, message("bad")) == ["refused / refused: 403 BLOCKED"]


async def test_an_identity_that_does_not_list_the_plugin_cannot_be_spoken_for(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.send("@ann", "psst", identity="boss")
        """
    )
    plugin.serves = frozenset({"me"})
    assert "does not serve 'boss'" in str(await error_of(plugin))


async def test_reminders_timers_and_the_peers_backlog_are_known(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.remind(60, data={"backlog": ctx.peer_backlog})

        @plugin.on(Timer)
        async def wake(timer: Timer, ctx: Context) -> None:
            ctx.send("@bob", str(timer.data))

        @plugin.every("5m")
        async def beat(timer: Timer, ctx: Context) -> None:
            ctx.send("@bob", "beat")
        """,
        timers_max=3,
    )
    plugin.backlog_of = lambda identity, target: {("me", "@bob"): 5_001}[identity, target]
    assert plugin.minds_timers
    assert [each.every_s for each in plugin.handlers.all] == [None, None, 300.0]
    failure, ctx = await run(plugin)
    assert failure is None
    assert ctx.reminders is not None
    [reminder] = ctx.reminders
    assert (reminder.after_s, reminder.data) == (60.0, b'{"backlog":5001}')
    assert await texts(plugin, Timer(identity="me", id="t1", data={"a": 1})) == ["{'a': 1}"]
    beat = Timer(identity="me", id="t2", name=plugin.handlers.all[2].name)
    assert await texts(plugin, beat, conversation=None) == ["beat"]
    plugin.timers = 3
    assert "timers_max" in str(await error_of(plugin))


async def test_progress_is_noted_at_once_puts_the_deadline_off_and_is_known_to_the_next_attempt(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message, timeout_s=0.5)
        async def handle(message: Message, ctx: Context) -> None:
            for step in range(ctx.last_progress or 0, 8):
                await asyncio.sleep(0.1)
                ctx.progress(step + 1)
            ctx.outcome("answered", {"steps": ctx.last_progress})

        @plugin.on(Timer)
        def block(timer: Timer, ctx: Context) -> None:
            ctx.progress("in a thread")
        """,
        kill_grace_s=0.1,
    )
    noted: list[bytes] = []
    ctx: TurnContext[Any] = TurnContext(plugin, message(), 7, 2, progressed=b"2", owner=Owner(noted))
    assert await plugin.turns.run(ctx.event, plugin.handlers.match(ctx.event), ctx, lambda: None) is None
    assert noted == [b"3", b"4", b"5", b"6", b"7", b"8"]
    assert ctx.progressed == b"8"
    assert ctx.outcomes == [("answered", b'{"steps":8}')]
    assert ctx.staged
    _, threaded = await run(plugin, Timer(identity="me", id="t"))
    assert threaded.progressed == b'"in a thread"'


async def test_a_batch_is_one_call_without_what_its_where_does_not_want(trial: Trial) -> None:
    plugin = await trial.start(
        """
        def is_wanted(message):
            if message.text == "raise":
                raise LookupError("in where")
            return message.text != "no"

        @plugin.on(Message, batch=10, where=is_wanted)
        async def together(messages: tuple[Message, ...], ctx: Context) -> None:
            ctx.reply(" ".join(message.text for message in messages))
        """
    )

    async def batch(*said: str) -> tuple[Failure | None, TurnContext[Any]]:
        events = tuple(message(text) for text in said)
        ctx: TurnContext[Any] = TurnContext(plugin, events[-1], 7, 1, cause=events[0])
        return await plugin.turns.run(events, plugin.handlers.match(events[0]), ctx, lambda: None), ctx

    failure, ctx = await batch("a", "no", "b", "no")
    assert failure is None
    assert ctx.sends is not None
    [send] = ctx.sends
    assert (send.content.text, send.content.metadata["reply_to"], ctx.said) == ("a b", "msg_b", 1)
    assert (await batch("no"))[1].sends is None
    failure, _ = await batch("a", "raise")
    assert failure is not None
    assert (told(failure.error), failure.handler) == ("LookupError: in where", plugin.handlers.all[0])
    assert await texts(plugin, message("alone")) == ["alone"]


async def test_what_is_said_at_once_goes_the_way_of_its_turn_and_not_of_its_plugin(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            await ctx.send_now("@ann", "now")
        """
    )
    steps: list[str] = []

    class Stage:
        def __getattr__(self, name: str) -> Any:
            return getattr(plugin, name)

        async def send_now(self, send: Any) -> Sent:
            steps.append(send.content.text)
            return Sent(client_msg_id=send.client_msg_id, id="x", conversation="c", seq=0)

    stage: Any = Stage()
    ctx: TurnContext[Any] = TurnContext(stage, message(), 7, 1, owner=Owner(steps))
    assert await plugin.turns.run(ctx.event, plugin.handlers.match(ctx.event), ctx, lambda: None) is None
    assert (steps, ctx.said) == (["before", "now"], 1)


async def test_signals_reach_their_handlers(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Presence, sender="ann")
        async def see(presence: Presence, ctx: Context) -> None:
            ctx.send("@bob", f"{presence.handle} is {presence.status}")
        """
    )
    ann = Presence(identity="me", handle="ann", status="online")
    assert await texts(plugin, ann, conversation=None) == ["ann is online"]
    assert plugin.handlers.match(Presence(identity="me", handle="eve", status="online")) == ()


# --- filters


async def test_plain_filters_are_evaluated_here_and_a_where_in_the_worker(trial: Trial) -> None:
    plugin = await trial.start(
        """
        import re

        def is_long(message):
            if message.text == "raise":
                raise LookupError("in where")
            return len(message.text) > 3

        @plugin.on(Message, sender="build-*", text=re.compile("^GO", re.I), direct=True)
        async def plain(message: Message, ctx: Context) -> None:
            ctx.reply("plain")

        @plugin.on(Message, sender={"ann", "bob"}, where=is_long, attempts=9, on_dead="hold", timeout_s=3)
        async def asked(message: Message, ctx: Context) -> None:
            ctx.reply("asked")
        """
    )
    plain, asked = plugin.handlers.all
    assert plugin.handlers.match(message("go on", sender="@build-7")) == (plain,)
    assert plugin.handlers.match(message("go on", sender="build-7", direct=False)) == ()
    assert plugin.handlers.match(message("stop", sender="build-7")) == ()
    assert plugin.handlers.match(message("hi", sender="eve")) == ()
    assert plugin.handlers.match(message("hi", sender="ann", own=True)) == ()
    assert (asked.name, asked.attempts, asked.on_dead, asked.timeout_s) == ("asked", 9, "hold", 3)
    assert asked.place.startswith(f"{trial.folder}/trial.py:")
    assert await texts(plugin, message("hello", sender="ann")) == ["asked"]
    assert await texts(plugin, message("hi", sender="ann")) == []
    assert told(await error_of(plugin, message("raise", sender="ann"))) == "LookupError: in where"


# --- failures


async def test_fates_come_out_as_they_went_in(trial: Trial) -> None:
    plugin = await trial.start(
        """
        class Busy(RetryLater):
            pass

        @plugin.on(Message, text="later")
        async def later(message: Message, ctx: Context) -> None:
            ctx.reply("never said")
            raise RetryLater(12.5, "the model sleeps", whole_plugin=True)

        @plugin.on(Message, text="never")
        def never(message: Message, ctx: Context) -> None:
            raise GiveUp("not for me")

        @plugin.on(Message, text="busy")
        async def busy(message: Message, ctx: Context) -> None:
            raise Busy(3)

        @plugin.on(Message, text="nonsense")
        async def nonsense(message: Message, ctx: Context) -> None:
            raise RetryLater("soon")
        """
    )
    later = await error_of(plugin, message("later"))
    assert isinstance(later, RetryLater)
    assert (later.after_s, later.reason, later.whole_plugin) == (12.5, "the model sleeps", True)
    failure, _ = await run(plugin, message("never"))
    assert failure is not None
    assert isinstance(failure.error, GiveUp)
    assert (failure.error.reason, failure.handler) == ("not for me", plugin.handlers.all[1])
    busy = await error_of(plugin, message("busy"))
    assert isinstance(busy, RetryLater)
    assert (busy.after_s, told(busy)) == (3.0, "Busy: retry in 3 s")
    nonsense = await error_of(plugin, message("nonsense"))
    assert not isinstance(nonsense, RetryLater)
    assert told(nonsense) == "RetryLater: retry in soon s"


async def test_an_unknown_error_keeps_its_name_its_text_and_its_traceback(trial: Trial) -> None:
    plugin = await trial.start(
        """
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            if message.text == "odd":
                raise Odd
            if message.text == "exit":
                sys.exit(4)
            if message.text == "surrogate":
                raise ValueError("\\udcff")
            if message.text == "cancel":
                return asyncio.current_task().cancel()
            raise KeyError(message.text)
        """
    )
    error = await error_of(plugin)
    assert told(error) == "KeyError: 'hello'"
    trace = "".join(traceback.format_exception(error))
    assert f'File "{trial.folder}/trial.py"' in trace
    assert "raise KeyError(message.text)" in trace
    assert trace.endswith("\nKeyError: 'hello'\n")
    assert told(await error_of(plugin, message("odd"))).startswith("Odd")
    assert told(await error_of(plugin, message("exit"))) == "SystemExit: 4"
    assert told(await error_of(plugin, message("surrogate"))) == "ValueError: \\udcff"
    assert told(await error_of(plugin, message("cancel"))).startswith("CancelledItself")
    assert plugin.standing()["restarts"] == 0


async def test_a_deadline_is_kept_by_the_worker_and_costs_only_its_turn(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message, text="hang", timeout_s=0.05)
        async def hang(message: Message, ctx: Context) -> None:
            await asyncio.sleep(60)

        @plugin.on(Message, text="block", timeout_s=0.05)
        def block(message: Message, ctx: Context) -> None:
            while not os.path.exists("FOLDER/release"):
                time.sleep(0.01)

        @plugin.on(Message, text="hello")
        async def greet(message: Message, ctx: Context) -> None:
            ctx.reply("hi")
        """.replace("FOLDER", str(trial.folder)),
        kill_grace_s=60,
    )
    pid = pid_of(plugin)
    hung = await error_of(plugin, message("hang"))
    assert isinstance(hung, DeadlinePassed)
    assert (hung.overrun, str(hung)) == (None, "hang did not return within 0.05 s")
    blocked = await error_of(plugin, message("block"))
    assert isinstance(blocked, DeadlinePassed)
    assert blocked.overrun is not None
    assert not blocked.overrun.done()
    (trial.folder / "release").touch()
    await blocked.overrun
    assert await texts(plugin) == ["hi"]
    assert pid_of(plugin) == pid


async def test_what_a_turn_stages_beyond_a_frame_fails_that_turn(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def hoard(message: Message, ctx: Context) -> None:
            for number in range(9 if message.text == "much" else 1):
                ctx.state.put(str(number), "x" * 8_000_000)
        """,
        state_value_max_bytes=10_000_000,
    )
    assert told(await error_of(plugin, message("much"))).startswith("FrameTooLarge")
    failure, ctx = await run(plugin)
    assert failure is None
    assert ctx.puts is not None
    assert len(ctx.puts[7, "0"] or b"") == 8_000_002


async def test_a_cancelled_call_is_cancelled_in_the_worker(trial: Trial) -> None:
    plugin = await trial.start(
        f"""
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            if message.text == "hang":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    open("{trial.folder}/cancelled", "x").close()
                    raise
            ctx.reply("hi")
        """
    )
    hanging = asyncio.create_task(run(plugin, message("hang")))
    for _ in range(2):  # behind the second answer it surely hangs
        assert await texts(plugin) == ["hi"]
    hanging.cancel()
    await asyncio.wait((hanging,))
    assert hanging.cancelled()
    await until((trial.folder / "cancelled").exists)
    assert await texts(plugin) == ["hi"]


# --- deaths

DEADLY = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if message.text.startswith("die"):
        os._exit(3)
    if message.text.startswith("wait"):
        await asyncio.sleep(60)
    while message.text == "loop":
        pass
    if message.text == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(4_000_000))
    if message.text == "crash":
        import ctypes
        ctypes.string_at(0)
    ctx.reply("hi")
"""


async def died(plugin: Isolated, text: str, **changes: Any) -> WorkerDied:
    error = await error_of(plugin, message(text, **changes))
    assert isinstance(error, WorkerDied)
    return error


async def test_a_death_fails_its_call_and_the_next_finds_a_new_worker(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await trial.start(DEADLY)
    pid, rose = pid_of(plugin), asyncio.Event()
    plugin.on_up = rose.set
    first = await died(plugin, "die")
    assert first.how == "it exited with status 3"
    assert not plugin.up
    assert not is_running(pid)
    await rose.wait()
    assert await texts(plugin) == ["hi"]
    assert plugin.standing()["restarts"] == 1
    assert pid_of(plugin) != pid
    crashed = await died(plugin, "crash")
    assert crashed.how == "it was killed by SIGSEGV"
    assert "Segmentation fault" in caplog.text


async def test_whatever_ran_beside_the_deadly_call_is_told_that_it_may_have_been_the_reason(trial: Trial) -> None:
    plugin = await trial.start(DEADLY)
    beside = asyncio.create_task(died(plugin, "wait"))
    assert await texts(plugin) == ["hi"]
    first = await died(plugin, "die")
    assert [(each.blamed, each.alone) for each in (first, await beside)] == [(True, False), (True, False)]
    second = await died(plugin, "die")
    assert (second.blamed, second.alone) == (True, True)


async def test_an_endless_loop_is_ended_by_the_cpu_limit_and_named(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = await trial.start(DEADLY, cpu_max_s=1)
    assert "cpu_max_s" in (await died(plugin, "loop")).how
    assert "in handle" in caplog.text
    assert await texts(plugin) == ["hi"]


async def test_calls_that_burn_less_than_the_limit_each_go_on_for_ever(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def burn(message: Message, ctx: Context) -> None:
            until = time.process_time() + 0.5
            while time.process_time() < until:
                pass
            ctx.reply(str(time.process_time()))
        """,
        cpu_max_s=1,
    )
    for _ in range(4):
        [burned] = await texts(plugin)
    assert float(burned or 0) > 2
    assert plugin.standing()["restarts"] == 0


async def test_whoever_eats_all_memory_costs_its_worker_and_nothing_else(trial: Trial) -> None:
    plugin = await trial.start(DEADLY, memory_max_mb=128)
    assert "memory_max_mb" in (await died(plugin, "eat")).how
    assert await texts(plugin) == ["hi"]


async def test_a_loop_past_its_deadline_is_killed_and_only_that_call_is_to_blame(trial: Trial) -> None:
    plugin = await trial.start(DEADLY, timeout_s=0.3, kill_grace_s=0.3)
    pid = pid_of(plugin)
    looping = asyncio.create_task(run(plugin, message("loop")))
    beside = asyncio.create_task(run(plugin, message("hello")))
    failure, _ = await looping
    assert failure is not None
    assert isinstance(failure.error, DeadlinePassed)
    assert failure.handler is plugin.handlers.all[0]
    innocent, _ = await beside
    assert innocent is not None
    assert isinstance(innocent.error, WorkerDied)
    assert not innocent.error.blamed
    assert not is_running(pid)
    assert await texts(plugin) == ["hi"]


async def test_a_thread_that_never_ends_is_ended_with_its_worker(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        def handle(message: Message, ctx: Context) -> None:
            while message.text == "hang":
                time.sleep(0.01)
            ctx.reply("hi")
        """,
        timeout_s=0.2,
        kill_grace_s=1.0,
    )
    pid = pid_of(plugin)
    error = await error_of(plugin, message("hang"))
    assert isinstance(error, DeadlinePassed)
    assert error.overrun is not None
    await error.overrun
    assert not is_running(pid)
    assert await texts(plugin) == ["hi"]


async def test_a_worker_that_cannot_start_again_says_so_and_is_tried_again(trial: Trial) -> None:
    plugin = await trial.start(DEADLY)
    file = trial.folder / "trial.py"
    source = file.read_text()
    file.write_text("import no_such_module_anywhere")
    await died(plugin, "die")
    await until(lambda: "no_such_module_anywhere" in plugin.standing()["reason"])
    assert plugin.standing()["up"] is False
    waiting = asyncio.create_task(texts(plugin))
    file.write_text(source.replace("async def handle", "async def renamed"))
    await until(lambda: "run: agentd reload" in plugin.standing()["reason"])
    # The same, elsewhere in the file.
    file.write_text("\n" + source)
    assert await waiting == ["hi"]
    assert plugin.handlers.all[0].place.endswith(f":{source[: source.index('@plugin.on')].count(chr(10)) + 2}")
    assert plugin.standing()["reason"] == ""


async def test_a_call_that_waits_for_a_worker_ends_with_a_plugin_that_gets_none_any_more(trial: Trial) -> None:
    plugin = await trial.start(DEADLY)
    (trial.folder / "trial.py").write_text("import no_such_module_anywhere")
    await died(plugin, "die")
    waiting = asyncio.create_task(error_of(plugin))
    await until(lambda: plugin.turns.running)
    await plugin.teardown()
    error = await asyncio.wait_for(waiting, 10)
    assert isinstance(error, WorkerDied)
    assert (error.blamed, error.alone) == (False, False)


async def test_a_worker_for_which_there_is_no_program_is_told_like_one_that_does_not_start(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    refusal = await trial.refusal(DEADLY)
    assert isinstance(refusal, PluginLoadError)
    assert str(refusal) == "plugin trial: its worker cannot be started: No such file or directory (/nowhere/python)"


async def test_a_worker_that_closes_its_pipe_or_writes_nonsense_is_replaced(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            fd = int(sys.argv[1])
            if message.text == "close":
                os.close(fd)
                await asyncio.sleep(60)
            if message.text == "nonsense":
                os.write(fd, b"\\0\\0\\0\\1!")
                await asyncio.sleep(60)
            ctx.reply("hi")
        """
    )
    assert (await died(plugin, "close")).how == "it closed its end of the pipe"
    assert "no message" in (await died(plugin, "nonsense")).how
    assert await texts(plugin) == ["hi"]


async def test_what_a_handler_started_ends_with_its_worker(trial: Trial) -> None:
    plugin = await trial.start(
        """
        import subprocess

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            child = subprocess.Popen(["sleep", "600"])
            ctx.reply(str(child.pid))
        """
    )
    [said] = await texts(plugin)
    child = int(said or 0)
    assert is_running(child)
    os.kill(pid_of(plugin), signal.SIGKILL)
    await until(lambda: not is_running(child))


# --- starting and stopping


@pytest.mark.parametrize(
    "source",
    [
        "syntax error",
        "import no_such_module_anywhere",
        "plugin = 1",
        "@plugin.on(Message)\nasync def handle(message): pass",
        "@plugin.on(Message, text='(')\nasync def handle(message, ctx): pass",
        "@plugin.setup\nasync def begin(ctx): raise OSError('no such service')",
    ],
)
async def test_what_keeps_a_plugin_from_starting_is_told_as_in_process(trial: Trial, source: str) -> None:
    isolated, plain = await trial.refusal(source), await trial.refusal_in_process(source)
    assert (type(isolated), str(isolated)) == (type(plain), str(plain))


async def test_settings_that_do_not_fit_are_told_as_in_process(trial: Trial) -> None:
    source = "class C(msgspec.Struct):\n    a: int\nplugin = Plugin('trial', config=C)"
    isolated, plain = (
        await trial.refusal(source, config={"b": 1}),
        await trial.refusal_in_process(source, config={"b": 1}),
    )
    assert isinstance(isolated, ConfigError)
    assert isinstance(plain, ConfigError)
    assert isolated.problems == plain.problems
    assert len(isolated.problems) == 2


async def test_an_event_that_nobody_sends_is_refused(trial: Trial) -> None:
    refused = await trial.refusal(
        "class Own(Signal):\n    pass\n@plugin.on(Own)\nasync def handle(event: Own, ctx: Context) -> None: pass"
    )
    assert "Own is not one of the events in agentd.plugin" in str(refused)


async def test_a_worker_that_dies_or_hangs_at_its_start_is_told_of(trial: Trial) -> None:
    assert "died while it was being loaded: it exited with status 3" in str(await trial.refusal("os._exit(3)"))
    dies_in_setup = "@plugin.setup\ndef begin(ctx):\n    os._exit(4)"
    assert "died while it was being set up: it exited with status 4" in str(await trial.refusal(dies_in_setup))
    hung = await trial.refusal("time.sleep(600)", start_timeout_s=0.5)
    assert "was not loaded within 0.5 s" in str(hung)
    await until(lambda: not is_running(pid_of(trial.plugins[0])) if trial.plugins else True)


async def test_too_little_memory_to_start_is_told(trial: Trial) -> None:
    refused = await trial.refusal("x = bytearray(300_000_000)", memory_max_mb=100)
    assert "MemoryError" in str(refused)
    refused = await trial.refusal("@plugin.setup\ndef begin(ctx):\n    bytearray(300_000_000)", memory_max_mb=100)
    assert "out of memory" in str(refused)


async def test_a_worker_that_is_told_to_end_does_what_its_plugin_left_to_the_exit(trial: Trial) -> None:
    plugin = await trial.start(
        f"""
        import atexit

        kept = open("{trial.folder}/kept", "w")
        atexit.register(lambda: (kept.write("at exit"), kept.close()))

        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            kept.write("handled, ")
            ctx.reply("hi")
        """
    )
    await run(plugin)
    pid = pid_of(plugin)
    await plugin.teardown()
    assert (trial.folder / "kept").read_text() == "handled, at exit"
    assert not is_running(pid)


async def test_a_thread_that_a_handler_left_behind_does_not_keep_its_worker(trial: Trial) -> None:
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            threading.Thread(target=time.sleep, args=[600]).start()
            ctx.reply("hi")
        """,
        kill_grace_s=0.2,
    )
    assert await texts(plugin) == ["hi"]
    pid = pid_of(plugin)
    await plugin.teardown()
    assert not is_running(pid)


async def test_a_teardown_that_hangs_ends_with_a_kill(trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    plugin = await trial.start(
        "@plugin.teardown\nasync def end(ctx):\n    time.sleep(600)", timeout_s=0.2, kill_grace_s=0.3
    )
    pid = pid_of(plugin)
    await plugin.teardown()
    assert not is_running(pid)
    assert "was not torn down within 0.5 s" in caplog.text


async def test_a_signal_to_stop_that_reaches_the_worker_too_is_left_to_the_daemon(trial: Trial) -> None:
    plugin = await trial.start(ECHO)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid_of(plugin), number)
    assert await texts(plugin) == ["hello"]
    assert plugin.standing()["restarts"] == 0


async def test_a_stop_leaves_nobody_waiting(trial: Trial) -> None:
    plugin = await trial.start(DEADLY)
    hanging = asyncio.create_task(run(plugin, message("wait")))
    assert await texts(plugin) == ["hi"]
    await plugin.teardown()
    failure, _ = await hanging
    assert failure is not None
    assert isinstance(failure.error, WorkerDied)
    assert not failure.error.blamed


PARENT = """
import asyncio, sys
from pathlib import Path
import uvloop
from agentd.config import PluginSettings
from agentd.host.isolated import load_hosted

async def read(plugin, conversation, key):
    return None

async def main():
    settings = PluginSettings(use="./trial.py", isolate="process")
    plugin = await load_hosted("trial", settings, Path(sys.argv[1]), read)
    await plugin.setup()
    print(plugin.standing()["pid"], flush=True)
    await asyncio.sleep(600)

uvloop.run(main())
"""


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_does_not_outlive_its_daemon(tmp_path: Path, busy: bool) -> None:
    loop = "@plugin.setup\nasync def begin(ctx):\n    asyncio.get_running_loop().call_later(0.1, burn)\n"
    loop += "def burn():\n    while True: pass\n"
    (tmp_path / "trial.py").write_text(PRELUDE + (loop if busy else ""))
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        worker = int(daemon.stdout.readline())
        assert is_running(worker)
        daemon.kill()
    ends_at = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < ends_at
        time.sleep(0.01)


# --- what it gets and what it says


async def test_the_environment_lacks_the_keys_and_what_is_the_daemons_own(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALICE_KEY", "NOTIFY_SOCKET", "OF_THE_PLUGIN"):
        monkeypatch.setenv(name, "value")
    settings = trial.settings(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            ctx.reply(" ".join(each for each in ("ALICE_KEY", "NOTIFY_SOCKET", "OF_THE_PLUGIN") if each in os.environ))
        """
    )
    plugin = await load_hosted("trial", settings, trial.folder, trial.read, hidden={"ALICE_KEY"})
    assert isinstance(plugin, Isolated)
    trial.plugins.append(plugin)
    await plugin.setup()
    assert await texts(plugin) == ["OF_THE_PLUGIN"]


async def test_no_descriptor_of_the_daemon_is_inherited(trial: Trial) -> None:
    plugin = await trial.load("")
    with (trial.folder / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        await plugin.setup()
        await trial.start(
            """
            @plugin.on(Message)
            async def handle(message: Message, ctx: Context) -> None:
                links = [f"/proc/self/fd/{fd}" for fd in range(3, 1_000)]
                ctx.reply(" ".join(os.readlink(link).partition(":")[0] for link in links if os.path.lexists(link)))
            """
        )
        # The loop's own selector and the pair that wakes it, and the pipe.
        assert await texts(trial.plugins[1]) == ["anon_inode socket socket socket"]


async def test_log_lines_arrive_with_their_fields_and_their_levels(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plugin = await trial.start(
        """
        @plugin.on(Message)
        def handle(message: Message, ctx: Context) -> None:
            ctx.log.debug("not wanted")
            ctx.log.info("%d of %s", 1, "two")
            logging.getLogger("a.library").warning("elsewhere \\udcff")
            try:
                raise LookupError("inside")
            except LookupError:
                ctx.log.exception("caught")
            if message.text == "die":
                os._exit(1)
        """
    )
    failure, _ = await run(plugin, message("die"))
    assert failure is not None
    of_plugin = [each for each in caplog.records if each.name == "agentd.plugins.trial"]
    assert [(each.levelname, each.getMessage()) for each in of_plugin] == [("INFO", "1 of two"), ("ERROR", "caught")]
    fields = [vars(of_plugin[0])[name] for name in ("plugin", "identity", "conversation", "event_id")]
    assert fields == ["trial", "me", "conv_1", "msg_die"]
    assert of_plugin[1].exc_text is not None
    assert "LookupError: inside" in of_plugin[1].exc_text
    [elsewhere] = [each for each in caplog.records if each.name == "a.library"]
    assert (elsewhere.getMessage(), vars(elsewhere)["plugin"]) == ("elsewhere \\udcff", "trial")


async def test_what_is_printed_is_logged_line_by_line(trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plugin = await trial.start(
        """
        @plugin.on(Message)
        async def handle(message: Message, ctx: Context) -> None:
            print("one\\ntwo")
            print("x" * 20_000)
            print("to stderr", file=sys.stderr)
            sys.stdout.write("no end")
            os._exit(0)
        """
    )
    await run(plugin)
    said = [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "agentd.plugins.trial"]
    assert [line for line in said if line[1][0] != "x"] == [
        ("INFO", "one"),
        ("INFO", "two"),
        *sorted([("WARNING", "to stderr"), ("INFO", "no end")], key=said.index),
    ]
    pieces = [text for _, text in said if text[0] == "x"]
    assert "".join(pieces) == "x" * 20_000
    assert max(map(len, pieces)) < 20_000


async def test_a_plugin_that_is_not_isolated_is_loaded_here(trial: Trial) -> None:
    settings = trial.settings(ECHO, isolate="none")
    plugin = await load_hosted("trial", settings, trial.folder, trial.read)
    assert not isinstance(plugin, Isolated)
    assert plugin.up
    await plugin.teardown()
