"""Lanes of a plugin whose process dies: who is run again, who is buried, and who does not notice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentd.config import Dispatch, PluginSettings
from agentd.core.events import Message, Record, Send
from agentd.core.retry import Backoff
from agentd.dispatcher import Dispatcher, Marks
from agentd.host.isolated import Hosted, Isolated, load_hosted
from agentd.host.lifecycle import Loaded
from agentd.plugin import Context, Plugin
from agentd.testing import MemoryJournal

SOURCE = """
import asyncio
import os
from pathlib import Path

from agentd.plugin import Context, Message, Plugin, Timer

plugin = Plugin("trial")
folder = Path(__file__).parent
leaked = []


def first_time(name):
    fresh = not (folder / name).exists()
    (folder / name).touch()
    return fresh


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    with open(folder / "notes", "a") as notes:
        print(message.conversation, message.text, ctx.attempt, file=notes)
    if message.text == "die" or (message.text == "die once" and first_time("died")):
        os._exit(3)
    if message.text == "fail":
        raise ValueError("no")
    if message.text == "fail once" and first_time("failed"):
        raise ValueError("no")
    if message.text.startswith("leak"):
        leaked.append(bytearray(20_000_000))
    if message.text.startswith("takes"):
        await asyncio.sleep(0.005)
    while message.text == "wait" and not (folder / "release").exists():
        await asyncio.sleep(0.005)
    ctx.reply(f"{message.conversation} {message.text}")
    if message.text == "remind":
        ctx.remind(0)


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context) -> None:
    if first_time("woken"):
        os._exit(4)
    ctx.send("@peer", "woken")
"""


BATCHES = """
import os

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("trial")


@plugin.on(Message, batch=10, settle_s=0.05)
async def together(messages: tuple[Message, ...], ctx: Context) -> None:
    ctx.progress(len(messages))
    if any(message.text == "die" for message in messages):
        os._exit(3)
    ctx.reply(" ".join(str(message.text) for message in messages))
    ctx.outcome("answered")
"""


HANGS = """
import asyncio
import time
from pathlib import Path

from agentd.plugin import Context, Message, Plugin, Timer

plugin = Plugin("trial")
begun = Path(__file__).with_name("begun")


@plugin.on(Message, timeout_s=0.1)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "hang":
        time.sleep(600)
    ctx.remind(0)


@plugin.on(Timer, timeout_s=600)
async def wake(timer: Timer, ctx: Context) -> None:
    if not begun.exists():
        begun.touch()
        await asyncio.sleep(600)
    ctx.send("@peer", "woken")
"""


class Rig:
    """A dispatcher on a journal in memory with an isolated plugin, and one in this process beside it."""

    def __init__(self, folder: Path, source: str = SOURCE, **dispatch: Any) -> None:
        self.folder = folder
        self.journal = MemoryJournal()
        self.settings = Dispatch(**dispatch)
        self.seen: list[str | None] = []
        (folder / "trial.py").write_text(source)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Dispatcher]:
        given = PluginSettings(use="./trial.py", isolate="process", **settings)
        trial = await load_hosted("trial", given, self.folder, self.journal.state_get)
        assert isinstance(trial, Isolated)
        self.trial = trial
        plugins: dict[str, Hosted] = {"trial": trial, "healthy": self._healthy()}
        for plugin in plugins.values():
            await plugin.setup()
        dispatcher = Dispatcher(
            self.journal,
            plugins,
            {"me": list(plugins)},
            self.settings,
            revive=self.journal.revive,
            on_queued=lambda sends: None,
            on_backlog=lambda identity, is_so: None,
            marks=Marks(1_000, 100, 1 << 30, 1 << 29),
            backoff=Backoff(first_s=0.01, max_s=0.02),
            chance=lambda: 0.0,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                await dispatcher.start(tasks)
                try:
                    yield dispatcher
                finally:
                    await dispatcher.stop(0.2)
        finally:
            for plugin in plugins.values():
                await plugin.teardown()

    def _healthy(self) -> Loaded:
        plugin = Plugin("healthy")

        @plugin.on(Message)
        async def see(message: Message, ctx: Context) -> None:
            self.seen.append(message.text)

        return Loaded("healthy", plugin, PluginSettings(use="healthy"), "", self.journal.state_get)

    def said(self, conversation: str, text: str) -> Record:
        seq = self.journal.next_seq("me", conversation)
        event = Message(
            identity="me",
            conversation=conversation,
            seq=seq,
            id=f"{conversation}.{seq}",
            sender="peer",
            text=text,
            answer_to="@peer",
        )
        return self.journal.append(event, 0.0)

    def answers(self) -> list[str | None]:
        return [send.content.text for send in self.sent()]

    def sent(self) -> list[Send]:
        return list(self.journal.sent.values())

    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().splitlines() if file.exists() else []


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_poison_is_buried_after_two_deaths_and_whoever_ran_beside_it_is_run_again_uncounted(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    async with rig.running(attempts=1) as dispatcher:
        dispatcher.offer([rig.said("beside", "wait")])
        await until(lambda: rig.notes() == ["beside wait 1"])
        dispatcher.offer([rig.said("bad", "die"), rig.said("bad", "hello"), rig.said("good", "hello")])
        await until(lambda: rig.trial.restarts)
        (tmp_path / "release").touch()
        await until(lambda: dispatcher.pending == {"me": 0})
        assert sorted(map(str, rig.answers())) == ["bad hello", "beside wait", "good hello"]
    [dead] = rig.journal.dead
    assert dead.error == "WorkerDied: its worker process died while this event was handled: it exited with status 3"
    assert dead.position == 2
    assert rig.seen == ["wait", "die", "hello", "hello"]


async def test_what_was_blamed_for_a_death_is_on_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as dispatcher:
        (tmp_path / "trial.py").write_text("import no_such_module_anywhere")
        dispatcher.offer([rig.said("c", "die once")])
        await until(lambda: rig.journal.failed)
        blamed = rig.journal.failed["trial", 1]
        assert (blamed.position, blamed.count, blamed.deaths) == (1, 0, 1)
        (tmp_path / "trial.py").write_text(SOURCE)
        await until(lambda: rig.answers() == ["c die once"])
    assert rig.notes() == ["c die once 1", "c die once 2"]


async def test_a_batch_whose_worker_died_is_handled_one_by_one_and_the_poison_in_it_buried(tmp_path: Path) -> None:
    rig = Rig(tmp_path, BATCHES)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", text) for text in ("a", "b", "die", "e")])
        await until(lambda: rig.trial.restarts >= 1)
        dispatcher.offer([rig.said("c", "f"), rig.said("c", "g")])
        await until(lambda: dispatcher.pending == {"me": 0})
        assert rig.answers() == ["a", "b", "e", "f g"]
    [dead] = rig.journal.dead
    assert dead.position == 3
    assert dead.error.startswith("WorkerDied")


async def test_a_rehearsal_in_a_worker_shows_what_a_turn_would_do_and_does_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "hello")])
        await until(lambda: dispatcher.pending == {"me": 0})
        [stored] = await rig.journal.read_log(None, 0, 1)
        shown = await dispatcher.rehearse("trial", stored)
        assert shown is not None
        assert [send.content.text for send in shown.sends] == ["c hello"]
        assert len(rig.answers()) == 1


async def test_while_there_is_no_worker_nothing_of_the_plugin_runs_and_others_do(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as dispatcher:
        (tmp_path / "trial.py").write_text("import no_such_module_anywhere")
        dispatcher.offer([rig.said("c0", "die once")])
        await until(lambda: "no_such_module" in rig.trial.standing()["reason"])
        dispatcher.offer([rig.said(f"c{number}", "hello") for number in range(1, 200)])
        await until(lambda: rig.seen.count("hello") == 199)
        assert rig.answers() == []
        assert rig.notes() == ["c0 die once 1"]
        (tmp_path / "trial.py").write_text(SOURCE)
        await until(lambda: dispatcher.pending == {"me": 0})
        assert len(rig.answers()) == 200
        assert rig.journal.dead == []


async def test_a_leak_costs_processes_and_no_event(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running(memory_max_mb=120) as dispatcher:
        texts = [f"leak {number}" for number in range(20)]
        dispatcher.offer([rig.said("c", text) for text in texts])
        await until(lambda: dispatcher.pending == {"me": 0})
        assert rig.answers() == [f"c {text}" for text in texts]
        assert rig.trial.restarts >= 3
        assert rig.journal.dead == []


async def test_through_kills_from_outside_every_event_has_one_fate_and_lanes_keep_their_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running(concurrency=8) as dispatcher:
        offered = [rig.said(f"c{number % 10}", f"takes {number}") for number in range(400)]
        dispatcher.offer(offered)
        for kills in range(6):
            answered = len(rig.answers())
            await until(
                lambda kills=kills, answered=answered: (
                    dispatcher.pending == {"me": 0}
                    or (rig.trial.up and rig.trial.restarts >= kills and len(rig.answers()) >= answered + 20)
                )
            )
            pid = rig.trial.standing()["pid"]
            if isinstance(pid, int):
                os.kill(pid, signal.SIGKILL)
        await until(lambda: dispatcher.pending == {"me": 0})
        dead = {each.position for each in rig.journal.dead}
        wanted = [record.event for record in offered if record.position not in dead]
        for number in range(10):
            said = [str(text) for text in rig.answers() if str(text).startswith(f"c{number} ")]
            assert said == [
                f"{event.conversation} {event.text}"
                for event in wanted
                if isinstance(event, Message) and event.conversation == f"c{number}"
            ]
        assert all(each.error.startswith("WorkerDied") for each in rig.journal.dead)
        assert rig.trial.restarts >= 3


async def test_a_trial_that_dies_keeps_the_breaker_open_and_the_next_trial_closes_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, breaker_lanes=1, breaker_first_s=0.05, breaker_max_s=0.1)
    async with rig.running(attempts=2) as dispatcher:
        dispatcher.offer([rig.said("first", "fail once")])
        await until(lambda: dispatcher.standing("trial")["breaker"] == "open")
        dispatcher.offer([rig.said("second", "die once"), rig.said("third", "hello")])
        await until(lambda: dispatcher.pending == {"me": 0})
        assert dispatcher.standing("trial")["breaker"] == "closed"
        assert sorted(map(str, rig.answers())) == ["first fail once", "second die once", "third hello"]


async def test_a_timer_that_kills_its_worker_is_run_again_as_one_that_failed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "remind")])
        await until(lambda: rig.answers() == ["c remind", "woken"])
        await until(lambda: dispatcher.standing("trial")["timers"] == 0)


async def test_a_timer_whose_worker_was_killed_for_another_call_is_run_again_uncounted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, HANGS)
    async with rig.running(attempts=1, kill_grace_s=0.1) as dispatcher:
        dispatcher.offer([rig.said("c1", "remind")])
        await until((tmp_path / "begun").exists)
        dispatcher.offer([rig.said("c2", "hang")])
        await until(lambda: rig.answers() == ["woken"])
        await dispatcher.quiet()
    assert [letter.position for letter in rig.journal.dead] == [2]
