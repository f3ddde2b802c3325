"""Change without a restart: identities and plugins come, go and change, and those that did not do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agentd import config, supervisor
from agentd.control.api import HandOverRequest
from agentd.control.refusal import ControlError
from agentd.control.systemd import ServiceManager
from agentd.daemon import Daemon
from agentd.errors import ConfigError, Unavailable
from agentd.handover import Departure
from agentd.handover.messages import PROTOCOL
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from agentd.identities import key_reader
from agentd.journal.sqlite import open_journal
from agentd.journal.sqlite.opening import SCHEMA
from agentd.journal.storage import StoredRecord, Totals

PLUGIN = """
import asyncio
from pathlib import Path
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("{name}")
NOTES = Path(__file__).with_name("notes")


def note(word):
    with NOTES.open("a") as notes:
        print(word, file=notes)


@plugin.setup
async def begin(ctx):
    note("setup {word}")
    {setup}


@plugin.teardown
async def end(ctx):
    note("teardown {word}")
    {teardown}


@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    if message.text.startswith("slow"):
        note("began " + message.text)
        while not Path(__file__).with_name("go").exists():
            await asyncio.sleep(0.01)
    ctx.reply("{word} " + message.text)
"""


class World:
    """A hub, and a daemon whose configuration, keys and plugins are files that the test changes."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub
        self.file = folder / "agentd.toml"
        self.extra = ""
        self.dispatch = {"drain_timeout_s": 0.5, "retry_first_s": 0.05}
        self.identities: dict[str, list[str]] = {}
        self.plugins: dict[str, str] = {}
        self.key_files: dict[str, str] = {}
        self.urls: dict[str, str] = {}
        self.daemon: Daemon | None = None
        hub.create_agent("peer")

    def key(self, name: str, key: str) -> None:
        file = self.folder / f"{name}.key"
        file.touch(0o600)
        file.write_text(key)

    def identity(self, name: str, *plugins: str) -> None:
        if not self.hub.has_agent(name):
            self.key(name, self.hub.create_agent(name))
        self.identities[name] = list(plugins)

    def plugin(
        self, name: str, word: str = "", *, setup: str = "", teardown: str = "", text: str | None = None
    ) -> Path:
        file = self.folder / f"{name}.py"
        file.write_text(
            PLUGIN.format(name=name, word=word or name, setup=setup, teardown=teardown) if text is None else text
        )
        self.plugins.setdefault(name, f'use = "./{name}.py"')
        return file

    def write(self) -> None:
        lines = [
            "[agentd]",
            'state = "./state"',
            "link = { backoff_first_s = 0.05, backoff_max_s = 0.3 }",
            "intake = { gap_grace_s = 0.1, audit_interval_s = 300.0 }",
            f"dispatch = {{ {', '.join(f'{name} = {value}' for name, value in self.dispatch.items())} }}",
        ]
        for name, plugins in self.identities.items():
            lines += [
                f"[identity.{name}]",
                f'url = "{self.urls.get(name, self.hub.url)}"',
                f'key = {{ file = "{self.key_files.get(name, name + ".key")}" }}',
            ]
            lines += ["loop_guard = { answers_max = 0 }"]
            lines += [f"plugins = {plugins}"] if plugins else []
        for name, table in self.plugins.items():
            lines += [f"[plugin.{name}]", table]
        self.file.write_text("\n".join([*lines, self.extra]))

    def read(self) -> config.Settings:
        return config.load(self.file, {})

    async def start(self, *, watch_files: bool = False) -> None:
        self.write()
        (self.folder / "state").mkdir(exist_ok=True)
        settings = self.read()
        self.journal = await open_journal(self.folder / "state" / "journal.db", settings.agentd.journal)
        keys = {name: key_reader(identity) for name, identity in settings.identity.items()}
        self.daemon = Daemon(settings, self.folder, self.journal, keys, None, reread=self.read, watch_files=watch_files)
        self._run = asyncio.create_task(self.daemon.run())
        await self.until(lambda: self.daemon is not None and self.daemon.started.is_set())
        await self.until_live()

    async def stop(self) -> None:
        (self.folder / "go").touch()
        await self.end()

    async def end(self) -> None:
        """Stop, and let nothing go that waits."""
        if self.daemon is not None:
            await self.daemon.stop()
            await self._run
            await self.journal.close()
            self.daemon = None

    async def reload(self) -> dict[str, Any]:
        self.write()
        assert self.daemon is not None
        return await self.daemon.operations.reload()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                if self._run.done():
                    self._run.result()
                await asyncio.sleep(0.01)

    async def until_live(self) -> None:
        await self.until(
            lambda: sorted(self.states()) == sorted(self.identities) and set(self.states().values()) <= {"live"}
        )

    def states(self) -> dict[str, str]:
        return {name: status["state"] for name, status in self.identity_status().items()}

    def identity_status(self) -> dict[str, Any]:
        assert self.daemon is not None
        return {each["name"]: each for each in self.daemon.operations.status()["identities"]}

    def plugin_status(self, name: str) -> dict[str, Any]:
        assert self.daemon is not None
        return next(each for each in self.daemon.operations.status()["plugins"] if each["name"] == name)

    def post(self, to: str, *texts: str) -> None:
        self.hub.post("peer", to, *texts)

    def answers(self, sender: str) -> list[str]:
        return [self.hub.content(row).text or "" for row in self.hub.ledger() if row.sender == sender]

    async def until_answers(self, sender: str, *texts: str) -> None:
        await self.until(lambda: len(self.answers(sender)) >= len(texts))
        assert self.answers(sender) == list(texts)

    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().splitlines() if file.exists() else []

    def unnoticed(self, name: str) -> tuple[Any, ...]:
        """What is another one as soon as an identity was disturbed."""
        assert self.daemon is not None
        life = self.daemon._supervisors[name]._life
        assert life is not None
        status = self.identity_status()[name]
        return id(life._link), status["reconnects"], status["restarts"], len(status["history"]), *self.sockets(name)

    def sockets(self, name: str) -> list[int]:
        service = self.hub.service
        return [id(each) for each in service.sockets.of(service.accounts.get(name))]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Hub(HubSettings(cold_rule=False, sends_per_s=0)) as hub:
        made = World(tmp_path, hub)
        try:
            yield made
        finally:
            await made.stop()


# --- identities


async def test_an_identity_is_added_and_the_others_do_not_notice(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    before = world.unnoticed("alice")
    world.identity("bob", "first")
    assert (await world.reload())["identities"] == {
        "added": ["bob"],
        "removed": [],
        "moved": [],
        "rekeyed": [],
        "changed": [],
    }
    await world.until_live()
    world.post("bob", "hello")
    world.post("alice", "hello")
    await world.until_answers("bob", "first hello")
    await world.until_answers("alice", "first hello")
    assert world.unnoticed("alice") == before
    assert world.notes() == ["setup first"], "nor does a plugin"


async def test_nothing_of_a_removed_identity_runs_and_when_it_is_back_nothing_is_missing(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    world.post("bob", "1")
    await world.until_answers("bob", "first 1")
    before = world.unnoticed("alice")
    plugins = world.identities.pop("bob")
    assert (await world.reload())["identities"]["removed"] == ["bob"]
    assert (world.sockets("bob"), list(world.states())) == ([], ["alice"])
    assert not [task for task in asyncio.all_tasks() if "bob" in task.get_name()]
    world.post("bob", "2", "3")
    await asyncio.sleep(0.2)
    assert world.answers("bob") == ["first 1"]
    world.identities["bob"] = plugins
    await world.reload()
    await world.until_answers("bob", "first 1", "first 2", "first 3")
    assert world.unnoticed("alice") == before


async def test_a_removed_identitys_running_turn_ends_and_its_answer_leaves_when_it_is_back(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    world.post("bob", "slow", "next")
    await world.until(lambda: "began slow" in world.notes())
    del world.identities["bob"]
    assert (await world.reload())["still_running"] == ["bob: first"]
    world.identities["bob"] = ["first"]
    with pytest.raises(ConfigError, match=r"identity.bob: a handler of plugin first still runs for it from before"):
        await world.reload()
    (world.folder / "go").touch()

    def is_back() -> bool:
        assert world.daemon is not None
        return not world.daemon._dispatcher.still_running("bob", ["first"])

    await world.until(is_back)
    await world.reload()
    await world.until_answers("bob", "first slow", "first next")


async def test_an_identity_that_is_renamed_takes_its_account_along(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    (world.folder / "robert.key").touch(0o600)
    (world.folder / "robert.key").write_text((world.folder / "bob.key").read_text())
    del world.identities["bob"]
    world.identities["robert"] = ["first"]
    answer = await world.reload()
    assert (answer["identities"]["added"], answer["identities"]["removed"]) == (["robert"], ["bob"])
    await world.until_live()
    world.post("bob", "hello")
    await world.until_answers("bob", "first hello")


async def test_an_identity_that_moves_is_dialled_at_its_new_place_and_loses_nothing(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    before = world.unnoticed("alice")
    world.post("bob", "slow 1", "2")
    await world.until(lambda: "began slow 1" in world.notes())
    world.urls["bob"] = world.hub.url.replace("127.0.0.1", "localhost")
    assert (await world.reload())["identities"]["moved"] == ["bob"]
    (world.folder / "go").touch()
    await world.until_live()
    world.post("bob", "3")
    await world.until_answers("bob", "first slow 1", "first 2", "first 3")
    assert world.identity_status()["bob"]["url"] == world.urls["bob"]
    assert world.unnoticed("alice") == before


async def test_what_a_lane_reads_while_its_identity_moves_is_handled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.dispatch["lane_memory"] = 1
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    assert world.daemon is not None
    pending, journal = world.daemon._dispatcher.pending, world.journal
    world.post("alice", "slow", "1", "2")
    await world.until(lambda: pending["alice"] == 3)
    reading, ended, read_lane, handles = asyncio.Event(), asyncio.Event(), journal.read_lane, journal.handles

    async def slow(*place: int) -> list[StoredRecord]:
        stored = await read_lane(*place)
        reading.set()
        await ended.wait()
        return stored

    async def until_all_is_read() -> dict[str, str]:
        ended.set()
        await world.until(lambda: not pending["alice"])
        return await handles()

    monkeypatch.setattr(journal, "read_lane", slow)
    monkeypatch.setattr(journal, "handles", until_all_is_read)
    (world.folder / "go").touch()
    await reading.wait()
    world.urls["alice"] = world.hub.url.replace("127.0.0.1", "localhost")
    await world.reload()
    assert world.identity_status()["alice"]["dead"] == 0
    await world.until_answers("alice", "first slow", "first 1", "first 2")


async def test_nobody_waits_for_the_last_turns_of_a_plugin_that_was_taken_from_another(world: World) -> None:
    world.dispatch["drain_timeout_s"] = 3_600.0
    for name in ("first", "second"):
        world.plugin(name)
    world.identity("alice", "first")
    world.identity("bob", "second")
    await world.start()
    world.post("alice", "slow")
    await world.until(lambda: "began slow" in world.notes())
    world.identities["alice"] = ["second"]
    world.identity("carol", "second")
    world.urls["bob"] = world.hub.url.replace("127.0.0.1", "localhost")
    reloading = asyncio.ensure_future(world.reload())
    await world.until(lambda: "carol" in world.states())
    await world.until_live()
    for name in world.identities:
        world.post(name, "hello")
        await world.until(lambda name=name: "second hello" in world.answers(name))
    assert world.identity_status()["bob"]["url"] == world.urls["bob"]
    assert not reloading.done()
    (world.folder / "go").touch()
    assert (await reloading)["still_running"] == []


async def test_a_status_that_is_asked_for_while_an_identity_is_on_its_way_in_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    counting, counted, totals = asyncio.Event(), asyncio.Event(), world.journal.totals

    async def slow(identity: str) -> Totals:
        counting.set()
        await counted.wait()
        return await totals(identity)

    monkeypatch.setattr(world.journal, "totals", slow)
    world.identity("bob", "first")
    reloading = asyncio.ensure_future(world.reload())
    await counting.wait()
    assert world.states()["alice"] == "live"
    counted.set()
    await reloading
    assert list(world.states()) == ["alice", "bob"]


# --- keys


async def test_another_key_in_the_same_file_is_connected_with_at_once_and_nobody_else_notices(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    before, others = world.unnoticed("bob"), world.unnoticed("alice")
    world.key("bob", world.hub.rotate_key("bob"))
    assert (await world.reload())["identities"]["rekeyed"] in (["bob"], []), "it may have read the key by itself"
    await world.until(lambda: world.states()["bob"] == "live" and world.sockets("bob") != [])
    world.post("bob", "hello")
    await world.until_answers("bob", "first hello")
    assert world.unnoticed("bob") != before
    assert world.unnoticed("alice") == others


async def test_a_parked_identity_goes_on_as_soon_as_it_has_a_key_from_elsewhere(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    fresh = world.hub.rotate_key("alice")
    await world.until(lambda: world.states() == {"alice": "parked"})
    (world.folder / "other").touch(0o600)
    (world.folder / "other").write_text(fresh)
    world.key_files["alice"] = "other"
    assert (await world.reload())["identities"]["rekeyed"] == ["alice"]
    await world.until_live()


async def test_a_stop_does_not_wait_for_a_reload_that_waits_for_turns(world: World) -> None:
    world.dispatch["drain_timeout_s"] = 600.0
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    world.post("alice", "slow 1")
    await world.until(lambda: "began slow 1" in world.notes())
    del world.identities["alice"]
    reloading = asyncio.create_task(world.reload())
    await world.until(lambda: list(world.states()) == ["bob"])
    stopping = asyncio.create_task(world.end())
    assert (await asyncio.wait_for(reloading, 30.0))["still_running"] == ["alice: first"]
    (world.folder / "go").touch()
    await stopping


async def test_an_identity_that_was_suspended_is_tried_again_with_the_same_key(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    for _ in range(2):
        world.hub.set_status("alice", "suspended")
        await world.until(lambda: world.states() == {"alice": "parked"})
        await world.reload()
        await world.until(
            lambda: (
                [each["state"] for each in world.identity_status()["alice"]["history"]][-2:] == ["connecting", "parked"]
            )
        )
        world.hub.set_status("alice", "active")
        assert (await world.reload())["identities"]["rekeyed"] == []
        await world.until_live()
    world.post("alice", "1")
    await world.until_answers("alice", "first 1")


async def test_a_key_of_another_account_parks_the_identity_and_sends_nothing(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    world.key("alice", world.hub.create_agent("mallory"))
    await world.reload()
    await world.until(lambda: world.states() == {"alice": "parked"})
    assert "OTHER_ACCOUNT" in world.identity_status()["alice"]["state_reason"]


async def test_an_identity_whose_account_was_another_ones_goes_on_when_that_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_KEY_POLL_S", 0.05)
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    world.identities["robert"] = ["first"]
    world.key("robert", "not-a-key-of-anybodys")
    await world.reload()
    await world.until(lambda: world.states()["robert"] == "parked")
    world.key("robert", (world.folder / "alice.key").read_text())
    await world.until(lambda: "SAME_ACCOUNT" in world.identity_status()["robert"]["state_reason"])
    world.post("alice", "1")
    await world.until_answers("alice", "first 1")
    del world.identities["alice"]
    await world.reload()
    await world.until_live()
    world.post("alice", "2")
    await world.until(lambda: "first 2" in world.answers("alice"))


# --- plugins of identities


async def test_plugins_are_added_to_and_taken_from_an_identity_without_a_reconnect(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    world.identity("bob", "first")
    await world.start()
    before = world.unnoticed("alice"), world.unnoticed("bob")
    world.post("alice", "1")
    await world.until_answers("alice", "first 1")
    world.plugin("second")
    world.identities["alice"] = ["second"]
    answer = await world.reload()
    assert answer["identities"]["changed"] == ["alice"]
    assert answer["plugins"] == {"added": ["second"], "removed": [], "reloaded": []}
    world.post("alice", "2")
    await world.until_answers("alice", "first 1", "second 2")
    world.identities = {"alice": ["first", "second"], "bob": ["second"]}
    world.plugins["second"] += "\nattempts = 3"
    assert (await world.reload())["plugins"]["reloaded"] == ["second"]
    await world.until(lambda: len(world.answers("alice")) == 3)
    assert world.answers("alice")[2] == "first 2", "it goes on where it stood"
    world.identities = {"alice": ["second"], "bob": ["second"]}
    assert (await world.reload())["plugins"]["removed"] == ["first"]
    await world.until(lambda: "teardown first" in world.notes())
    assert (world.unnoticed("alice"), world.unnoticed("bob")) == before


async def test_settings_of_a_plugin_change_between_events(world: World) -> None:
    world.plugin("echo")
    world.plugins["echo"] = 'use = "echo"'
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    world.plugins["first"] = 'use = "./first.py"\ntimeout_s = 5'
    assert (await world.reload())["plugins"]["reloaded"] == ["first"]
    assert world.plugin_status("first")["generation"] == 2
    assert (await world.reload())["plugins"]["reloaded"] == []
    world.plugin("first", "changed")
    assert (await world.reload())["plugins"]["reloaded"] == ["first"], "its file has changed"
    world.post("alice", "hello")
    await world.until_answers("alice", "changed hello")


SECRETIVE = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("first")


@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    ctx.reply(message.text + " with " + ctx.secret("service")[:5])
"""


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_a_rotated_secret_takes_over_between_events(world: World, isolate: str) -> None:
    world.plugin("first", text=SECRETIVE)
    world.plugin("second")
    world.plugins["first"] += f'\nisolate = "{isolate}"\nsecrets = {{ service = {{ file = "service.key" }} }}'
    world.key("service", "older-than-time")
    world.identity("alice", "first", "second")
    await world.start()
    world.post("alice", "1")
    await world.until(lambda: "1 with older" in world.answers("alice"))
    assert (await world.reload())["plugins"]["reloaded"] == []
    world.key("service", "newer-than-news")
    assert (await world.reload())["plugins"]["reloaded"] == ["first"]
    assert (await world.reload())["plugins"]["reloaded"] == []
    assert [world.plugin_status(name)["generation"] for name in ("first", "second")] == [2, 1]
    world.post("alice", "2")
    await world.until(lambda: "2 with newer" in world.answers("alice"))
    (world.folder / "service.key").unlink()
    with pytest.raises(ConfigError, match=r"service\.key cannot be read"):
        await world.reload()
    world.post("alice", "3")
    await world.until(lambda: "3 with newer" in world.answers("alice"))


# --- refused


@pytest.mark.parametrize("trouble", ["syntax", "key", "url", "setup", "import"])
async def test_a_broken_configuration_is_refused_whole_and_the_one_before_stays(world: World, trouble: str) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    before = world.unnoticed("alice")
    world.identity("bob", "second")
    world.plugin("second")
    match trouble:
        case "syntax":
            world.extra = "[agentd.link]\nnonsense = 1"
            expected = "agentd.toml"
        case "key":
            (world.folder / "bob.key").unlink()
            expected = "bob.key cannot be read"
        case "url":
            world.urls["bob"] = "http://far.example"
            expected = "identity.bob.url: http:// would show the key to the network on the way to far.example"
        case "setup":
            file = world.plugin("second", setup='raise RuntimeError("no room")')
            line = file.read_text().splitlines().index('    raise RuntimeError("no room")') + 1
            expected = f"second.py:{line}: plugin second: its setup failed: no room"
        case _:
            world.plugin("second", text="\nimport nothing_of_this_name\n")
            expected = "second.py:2: plugin second: importing it failed"
    with pytest.raises(ConfigError) as refused:
        await world.reload()
    assert expected in str(refused.value)
    assert list(world.states()) == ["alice"]
    world.post("alice", "hello")
    await world.until_answers("alice", "first hello")
    assert world.unnoticed("alice") == before


async def test_what_was_refused_with_another_plugin_takes_over_when_that_is_mended(world: World) -> None:
    for name in ("first", "second"):
        world.plugin(name, "old")
    world.identity("alice", "first", "second")
    await world.start()
    world.plugin("first", "new")
    world.plugin("second", text="plugin = (\n")
    with pytest.raises(ConfigError, match="plugin second"):
        await world.reload()
    world.plugin("second", "new")
    assert sorted((await world.reload())["plugins"]["reloaded"]) == ["first", "second"]


async def test_a_plugin_whose_setup_failed_is_tried_again_though_its_file_is_the_same(world: World) -> None:
    world.plugin("first", "old")
    world.identity("alice", "first")
    await world.start()
    world.plugin("first", "new", setup='assert Path(__file__).with_name("there").exists(), "not there"')
    with pytest.raises(ConfigError, match="its setup failed: not there"):
        await world.reload()
    (world.folder / "there").touch()
    assert (await world.reload())["plugins"]["reloaded"] == ["first"]
    assert (await world.reload())["plugins"]["reloaded"] == []


async def test_what_cannot_change_while_it_runs_is_named_and_left(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    world.extra = "[agentd.journal]\nlinger_ms = 5.0\n[agentd.sending]\nrate_per_s = 7.0"
    assert (await world.reload())["at_next_start"] == ["agentd.sending.rate_per_s", "agentd.journal.linger_ms"]


async def test_the_last_identity_is_not_taken_away(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    await world.start()
    world.identities.clear()
    with pytest.raises(ConfigError, match="no identity is configured"):
        await world.reload()
    assert world.states() == {"alice": "live"}


# --- files of plugins


async def test_a_changed_file_takes_over_between_events_while_turns_run(world: World) -> None:
    file = world.plugin("first", "old")
    world.identity("alice", "first")
    world.hub.create_agent("other")
    await world.start(watch_files=True)
    before = world.unnoticed("alice")
    world.post("alice", "slow 1", "2")
    await world.until(lambda: "began slow 1" in world.notes())
    stat = file.stat()
    world.plugin("first", "new")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # of the same size, and of the same second
    await world.until(lambda: world.plugin_status("first")["generation"] == 2)
    world.hub.post("other", "alice", "3")
    await world.until_answers("alice", "new 3")
    assert "teardown old" not in world.notes(), "its turn has not ended"
    (world.folder / "go").touch()
    await world.until_answers("alice", "new 3", "old slow 1", "new 2")
    await world.until(lambda: "teardown old" in world.notes())
    assert world.unnoticed("alice") == before


async def test_a_plugin_in_a_process_of_its_own_is_taken_over_the_same_way(world: World) -> None:
    world.plugin("first", "old")
    world.plugins["first"] += '\nisolate = "process"'
    world.identity("alice", "first")
    world.hub.create_agent("other")
    await world.start(watch_files=True)
    before, worker = world.unnoticed("alice"), world.plugin_status("first")["worker"]["pid"]
    world.post("alice", "slow 1", "2")
    await world.until(lambda: "began slow 1" in world.notes())
    world.plugin("first", "new", setup='raise RuntimeError("no")')
    await world.until(lambda: "its setup failed: no" in (world.plugin_status("first")["reload_error"] or ""))
    world.plugin("first", "new")
    await world.until(lambda: world.plugin_status("first")["generation"] == 2)
    world.hub.post("other", "alice", "3")
    await world.until_answers("alice", "new 3")
    (world.folder / "go").touch()
    await world.until_answers("alice", "new 3", "old slow 1", "new 2")
    await world.until(lambda: "teardown old" in world.notes())
    assert world.plugin_status("first")["worker"]["pid"] != worker
    await world.until(lambda: not Path(f"/proc/{worker}").exists())
    assert world.unnoticed("alice") == before


async def test_a_handler_that_recurs_and_is_new_in_a_changed_file_runs(world: World) -> None:
    file = world.plugin("notes")
    world.identity("alice", "notes")
    await world.start(watch_files=True)
    beats = """
@plugin.every("0.1s")
async def beat(timer: Timer, ctx: Context) -> None:
    note("beat")
"""
    text = PLUGIN.format(name="notes", word="anew", setup="", teardown="") + beats
    file.write_text(text.replace("import Context", "import Timer, Context"))
    await world.until(lambda: world.notes().count("beat") > 1)


async def test_who_blocks_the_loop_is_named_by_the_generation_that_runs(world: World) -> None:
    world.plugin("first", "old")
    world.identity("alice", "first")
    await world.start(watch_files=True)
    assert world.daemon is not None
    generations = world.daemon._generations
    before = set(generations.codes)
    world.plugin("first", "new")
    await world.until(lambda: "teardown old" in world.notes())
    assert before

    def names_one_generation() -> bool:
        return generations.codes == dict(generations.plugins["first"].codes())

    await world.until(names_one_generation)
    assert before.isdisjoint(generations.codes)
    world.plugin("first", "bad", setup='raise RuntimeError("no")')
    await world.until(lambda: "its setup failed" in (world.plugin_status("first")["reload_error"] or ""))
    assert names_one_generation()


async def test_a_file_that_cannot_be_loaded_leaves_the_old_one_and_says_where(world: World) -> None:
    file = world.plugin("first", "old")
    world.identity("alice", "first")
    await world.start(watch_files=True)
    file.write_text("plugin = (\n")
    await world.until(lambda: world.plugin_status("first")["reload_error"] is not None)
    assert f"{file}:1: plugin first: " in world.plugin_status("first")["reload_error"]
    world.post("alice", "1")
    await world.until_answers("alice", "old 1")
    world.plugin("first", "bad", setup='raise RuntimeError("no")')
    await world.until(lambda: "its setup failed: no" in (world.plugin_status("first")["reload_error"] or ""))
    assert world.notes() == ["setup old", "setup bad", "teardown bad"]
    world.post("alice", "2")
    await world.until_answers("alice", "old 1", "old 2")
    world.plugin("first", "mended")
    await world.until(lambda: world.plugin_status("first")["reload_error"] is None)
    world.post("alice", "3")
    await world.until_answers("alice", "old 1", "old 2", "mended 3")


async def test_a_folder_is_reloaded_when_one_of_its_modules_changes(world: World) -> None:
    folder = world.folder / "packed"
    folder.mkdir()
    (folder / "words.py").write_text('WORD = "one"\n')
    (folder / "__init__.py").write_text(
        "from agentd.plugin import Message, Plugin\nfrom .words import WORD\n\n"
        'plugin = Plugin("packed")\n\n\n@plugin.on(Message)\nasync def say(message, ctx):\n    ctx.reply(WORD)\n'
    )
    world.plugins["packed"] = 'use = "./packed"'
    world.identity("alice", "packed")
    await world.start(watch_files=True)
    world.post("alice", "?")
    await world.until_answers("alice", "one")
    (folder / "words.py").write_text('WORD = "two"\n')
    await world.until(lambda: world.plugin_status("packed")["generation"] == 2)
    world.post("alice", "?")
    await world.until_answers("alice", "one", "two")


# --- the end


async def test_a_generation_that_is_being_torn_down_when_the_daemon_stops_is_let_finish(world: World) -> None:
    world.plugin("first", "old", teardown='await asyncio.sleep(0.3)\n    note("torn down old")')
    world.identity("alice", "first")
    await world.start()
    world.plugin("first", "new")
    await world.reload()
    await world.until(lambda: "teardown old" in world.notes())
    await world.stop()
    assert world.notes() == ["setup old", "setup new", "teardown old", "torn down old", "teardown new"]


async def test_a_generation_that_waits_for_its_turns_when_the_daemon_stops_is_torn_down_once(world: World) -> None:
    world.plugin("first", "old")
    world.identity("alice", "first")
    await world.start()
    world.post("alice", "slow")
    await world.until(lambda: "began slow" in world.notes())
    world.plugin("first", "new")
    await world.reload()
    await world.end()
    assert sorted(world.notes()[3:]) == ["teardown new", "teardown old"]


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_a_stop_does_not_wait_for_a_setup(world: World, isolate: str) -> None:
    world.plugin("first", "old")
    world.plugins["first"] += f'\nisolate = "{isolate}"\ntimeout_s = 3600'
    world.identity("alice", "first")
    await world.start()
    assert world.daemon is not None
    world.plugin("first", "new", setup="await asyncio.sleep(3600)")
    reloads = [asyncio.ensure_future(world.reload())]
    await world.until(lambda: "setup new" in world.notes())
    reloads.append(asyncio.ensure_future(world.daemon.operations.reload()))
    await asyncio.sleep(0)
    async with asyncio.timeout(15):
        await world.end()
    for reload in reloads:
        with pytest.raises(Unavailable, match="the daemon is stopping"):
            await reload
    # A worker that was not set up has nothing to tear down.
    assert world.notes() == ["setup old", "setup new", *["teardown new"] * (isolate == "none"), "teardown old"]


async def test_a_stop_does_not_wait_for_the_files_that_are_watched(world: World) -> None:
    world.plugin("first", "old")
    world.plugins["first"] += "\ntimeout_s = 3600"
    world.identity("alice", "first")
    await world.start(watch_files=True)
    world.plugin("first", "new", setup="await asyncio.sleep(3600)")
    await world.until(lambda: "setup new" in world.notes())
    async with asyncio.timeout(15):
        await world.end()
    assert world.notes() == ["setup old", "setup new", "teardown new", "teardown old"]


# --- a process


async def agentd(world: World, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentd", *words, "--config", str(world.file), stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, out.decode(), err.decode()


async def heard(manager: socket.socket, word: bytes) -> bytes:
    """What the service manager hears next of these words."""
    async with asyncio.timeout(15):
        while True:
            told = await asyncio.get_running_loop().sock_recv(manager, 500)
            if told.startswith(word):
                return told


async def test_a_change_that_begins_while_a_process_is_being_answered_comes_before_its_take_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.plugin("notes")
    world.identity("alice", "notes")
    await world.start()
    assert world.daemon is not None
    world.plugin("notes", "anew", setup="await asyncio.sleep(0.3)")
    changing = []

    async def connect(departure: Departure, path: str) -> None:
        changing.append(asyncio.create_task(world.reload()))
        await world.until(lambda: "setup anew" in world.notes())

    monkeypatch.setattr(Departure, "connect", connect)
    wanted = HandOverRequest(protocol=PROTOCOL, tables=SCHEMA.version, version="0", pid=os.getpid(), socket="nowhere")
    with pytest.raises(ControlError, match="its configuration is being changed; try again in a moment"):
        await world.daemon.operations.hand_over(wanted)
    assert (await changing[0])["plugins"]["reloaded"] == ["notes"]
    world.post("alice", "hi")
    await world.until_answers("alice", "anew hi")


@contextlib.asynccontextmanager
async def running(world: World) -> AsyncIterator[tuple[asyncio.subprocess.Process, socket.socket]]:
    """A daemon in a process of its own, and what hears it as its manager. It ends well when it is told to stop."""
    world.write()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(world.folder / "notify"))
        manager.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd", "run", "--config", str(world.file)),
            env={**os.environ, "NOTIFY_SOCKET": str(world.folder / "notify")},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await heard(manager, b"READY=1")
            yield process, manager
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_a_process_reloads_at_a_word_and_at_a_signal_and_tells_its_manager(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    async with running(world) as (process, manager):
        world.identity("bob", "first")
        world.write()
        assert await agentd(world, "reload") == (0, "identity added: bob\n", "")
        assert (await heard(manager, b"RELOADING=1")).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert await heard(manager, b"READY=1") == b"READY=1"
        world.extra = "[nonsense]\nx = 1"
        world.write()
        code, out, err = await agentd(world, "reload")
        assert (code, out) == (78, "")
        assert "agentd.toml" in err
        assert "nonsense: unknown key" in err
        await heard(manager, b"READY=1")
        world.extra = ""
        world.plugin("first", "changed")
        world.write()
        process.send_signal(signal.SIGHUP)
        await heard(manager, b"RELOADING=1")
        await heard(manager, b"READY=1")
        world.post("bob", "hello")
        async with asyncio.timeout(15):
            while not world.answers("bob"):
                await asyncio.sleep(0.02)
        assert world.answers("bob") == ["changed hello"]


async def test_who_was_told_that_it_runs_may_have_it_reload_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    handled: list[bool] = []
    monkeypatch.setattr(
        ServiceManager, "ready", lambda self: handled.append(signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL)
    )
    await world.start()
    assert handled == [True]


async def test_a_process_ends_though_it_imports_what_never_comes_to_an_end(world: World) -> None:
    world.plugin("first")
    world.identity("alice", "first")
    async with running(world) as (process, _):
        begun = world.folder / "begun"
        world.plugin("first", text=f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(3600)\n")
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(15):
            while not begun.exists():
                await asyncio.sleep(0.02)


async def test_a_daemon_with_its_own_hub_keeps_its_identities_and_takes_other_plugins(tmp_path: Path) -> None:
    async def command(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agentd", *words, "--state", "state"), cwd=tmp_path, stdout=-1, stderr=-1
        )
        out, err = await asyncio.wait_for(process.communicate(), 20)
        return process.returncode or 0, out.decode(), err.decode()

    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentd", "run", "--state", "state"), cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while (await command("send", "@echo", "one"))[1] != "echo: one\n":
                await asyncio.sleep(0.1)
        (tmp_path / "shout.py").write_text(PLUGIN.format(name="echo", word="changed", setup="", teardown=""))
        (tmp_path / "agentd.toml").write_text('[plugin.echo]\nuse = "./shout.py"\n')
        assert await command("reload") == (0, "plugin reloaded: echo\n", "")
        assert (await command("send", "@echo", "two"))[1] == "echo: changed two\n"
        (tmp_path / "key").touch(0o600)
        (tmp_path / "key").write_text("ac_live_0123456789abcdef")
        with (tmp_path / "agentd.toml").open("a") as file:
            file.write('[identity.x]\nurl = "http://127.0.0.1:1"\nkey = { file = "key" }\n')
        told = "note: identity takes effect at the next start\n"
        assert await command("reload") == (0, "nothing has changed\n", told)
    finally:
        daemon.terminate()
        assert await asyncio.wait_for(daemon.wait(), 15) == 0
