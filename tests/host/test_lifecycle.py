"""From the file to the end: fresh modules, settings that fit, setup and teardown, and what is told when they do not."""

import asyncio
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.config import PluginSettings
from agentd.errors import ConfigError, PluginLoadError
from agentd.host.lifecycle import Loaded, fitted, load
from agentd.plugin import Context, Message, Plugin, PluginContext


async def nothing_stored(plugin: str, conversation: int, key: str) -> bytes | None:
    return None


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text))
    return f"./{name}"


def load_from(folder: Path, use: str, **config: Any) -> Loaded:
    return load("greeter", PluginSettings(use=use, config=config), folder, nothing_stored)


def modules_of_plugins() -> list[str]:
    return [name for name in sys.modules if name.startswith("agentd_plugin_")]


async def test_two_loads_of_one_file_share_nothing_and_leave_nothing(tmp_path: Path) -> None:
    use = write(
        tmp_path,
        "greeter.py",
        """
        from agentd.plugin import Plugin
        plugin = Plugin("greeter")
        """,
    )
    first, second = load_from(tmp_path, use), load_from(tmp_path, use)
    assert first.plugin is not second.plugin
    assert first.version == second.version != ""
    await first.teardown()
    await second.teardown()
    assert modules_of_plugins() == []


async def test_a_changed_file_is_loaded_as_it_is_now(tmp_path: Path) -> None:
    template = 'from agentd.plugin import Plugin\nplugin = Plugin("greeter", version="{}")\n'
    use = "./greeter.py"
    for version in ("one", "another"):
        write(tmp_path, "greeter.py", template.format(version))
        loaded = load_from(tmp_path, use)
        assert loaded.version == version
        await loaded.teardown()


async def test_a_folder_can_import_its_own_modules(tmp_path: Path) -> None:
    write(tmp_path, "pack/words.py", "GREETING = 'hi'\n")
    write(
        tmp_path,
        "pack/__init__.py",
        """
        from agentd.plugin import Plugin
        from .words import GREETING
        plugin = Plugin("greeter", version=GREETING)
        """,
    )
    loaded = load_from(tmp_path, "./pack")
    assert loaded.version == "hi"
    await loaded.teardown()
    assert modules_of_plugins() == []


def test_an_installed_plugin_is_imported_by_its_ordinary_name() -> None:
    loaded = load("parrot", PluginSettings(use="agentd_echo:plugin"), Path(), nothing_stored)
    assert loaded.plugin is sys.modules["agentd_echo"].plugin
    assert loaded.name == "parrot"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\ndef broken(:\n", r"greeter\.py:2: plugin greeter: "),
        ("x = 1\n1 / 0\n", r"greeter\.py:2: plugin greeter: importing it failed: ZeroDivisionError"),
        ("import json\njson.loads('')\n", r"greeter\.py:2: plugin greeter: importing it failed: JSONDecodeError"),
        ("x = 1\n", r"greeter\.py: plugin greeter: there is no Plugin named plugin; write `plugin = "),
        (
            "from agentd.plugin import *\nplugin = Plugin('g')\n@plugin.on(Message)\nasync def f(m): ...\n",
            r"greeter\.py:3: plugin greeter: f must take two arguments",
        ),
        (
            "from agentd.plugin import *\nplugin = Plugin('g')\n@plugin.on(Message, txt='a')\nasync def f(m): ...\n",
            r"greeter\.py:3: plugin greeter: importing it failed: TypeError: .*'txt'",
        ),
    ],
)
def test_a_plugin_that_cannot_run_is_told_by_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PluginLoadError, match=told):
        load_from(tmp_path, write(tmp_path, "greeter.py", text))
    assert modules_of_plugins() == []


class Settings(msgspec.Struct, frozen=True):
    """What a plugin may be told."""

    greeting: str
    times: int = 1


def test_settings_become_the_plugins_struct() -> None:
    assert fitted("p", Settings, {"greeting": "hi"}) == Settings("hi", 1)
    assert fitted("p", None, {}) is None


def test_every_wrong_setting_is_told_at_once_by_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        fitted("p", Settings, {"greting": "hi", "times": "often"})
    assert caught.value.problems == (
        "plugin.p.config.greting: no such setting; did you mean greeting?",
        "plugin.p.config.greeting: is missing; add greeting = ... (text in quotes)",
        "plugin.p.config.times: expected a whole number, found text",
    )


def test_what_only_the_struct_as_a_whole_can_tell_is_told_too() -> None:
    class Range(msgspec.Struct):
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(ConfigError, match=r"plugin\.p\.config: low is above high"):
        fitted("p", Range, {"low": 2, "high": 1})


def test_settings_for_a_plugin_that_takes_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes no settings; remove a"):
        fitted("p", None, {"a": 1})


async def test_setups_run_in_order_and_teardowns_in_reverse() -> None:
    plugin = Plugin("p")
    calls = []

    @plugin.setup
    async def first(ctx: PluginContext) -> None:
        calls.append(f"first {ctx.name}")

    @plugin.setup
    def second(ctx: PluginContext) -> None:
        calls.append("second")

    @plugin.teardown
    async def last(ctx: PluginContext) -> None:
        calls.append("last")

    @plugin.teardown
    async def broken(ctx: PluginContext) -> None:
        raise ValueError("the others go on")

    loaded = Loaded("p", plugin, PluginSettings(use="p"), "", nothing_stored)
    await loaded.setup()
    await loaded.teardown()
    assert calls == ["first p", "second", "last"]


async def test_a_setup_that_fails_or_hangs_is_told_by_its_line() -> None:
    plugin = Plugin("p")

    @plugin.setup
    async def setup(ctx: PluginContext) -> None:
        raise ValueError("no database")

    with pytest.raises(PluginLoadError, match=r"test_lifecycle\.py:\d+: plugin p: its setup failed: no database"):
        await Loaded("p", plugin, PluginSettings(use="p"), "", nothing_stored).setup()

    hanging = Plugin("p")

    @hanging.setup
    async def hang(ctx: PluginContext) -> None:
        await asyncio.Event().wait()

    with pytest.raises(PluginLoadError, match="its setup failed: TimeoutError"):
        await Loaded("p", hanging, PluginSettings(use="p", timeout_s=0.02), "", nothing_stored).setup()


async def test_a_hook_that_awaits_what_it_cancelled_has_failed_and_cancels_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin = Plugin("p")
    calls = []

    @plugin.teardown
    async def last(ctx: PluginContext) -> None:
        calls.append("last")

    @plugin.setup
    @plugin.teardown
    async def stop_it(ctx: PluginContext) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    loaded = Loaded("p", plugin, PluginSettings(use="p"), "", nothing_stored)
    with pytest.raises(
        PluginLoadError, match=r"test_lifecycle\.py:\d+: plugin p: its setup failed: it awaited what was"
    ):
        await loaded.setup()
    await loaded.teardown()
    assert calls == ["last"]
    assert caplog.messages == ["teardown failed"]


@pytest.mark.parametrize("hook", ["setup", "teardown"])
async def test_whoever_waits_for_a_hook_can_cancel_it(hook: str) -> None:
    plugin, began = Plugin("p"), asyncio.Event()

    async def hang(ctx: PluginContext) -> None:
        began.set()
        await asyncio.sleep(60)

    getattr(plugin, hook)(hang)
    loaded = Loaded("p", plugin, PluginSettings(use="p"), "", nothing_stored)
    running = asyncio.ensure_future(getattr(loaded, hook)())
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_a_plugins_code_is_known_by_its_name() -> None:
    plugin = Plugin("p")

    def wanted(message: Message) -> bool:
        return True

    @plugin.on(Message, where=wanted)
    async def greet(message: Message, ctx: Context) -> None: ...

    names = dict(Loaded("p", plugin, PluginSettings(use="p"), "", nothing_stored).codes())
    assert names[greet.__code__].startswith("plugin p, handler ")
    assert names[wanted.__code__].startswith("plugin p, the filter of ")


def test_every_load_compiles_what_the_files_hold_even_of_one_size_and_second(tmp_path: Path) -> None:
    text = """
        from agentd.plugin import Plugin
        from .words import WORD
        plugin = Plugin("greeter", version=WORD)
        """
    write(tmp_path, "packed/__init__.py", text)
    versions = []
    for word in ("one", "two"):
        write(tmp_path, "packed/words.py", f'WORD = "{word}"\n')
        os.utime(tmp_path / "packed" / "words.py", (1_767_225_600, 1_767_225_600))
        versions.append(load_from(tmp_path, "./packed").version)
    assert versions == ["one", "two"]


async def test_a_plugin_that_wants_to_exit_ends_nothing_but_its_own_start(tmp_path: Path) -> None:
    use = write(tmp_path, "exits.py", "import sys\nsys.exit(3)\n")
    with pytest.raises(PluginLoadError, match=r"exits\.py:2: plugin greeter: importing it failed: SystemExit: 3"):
        load_from(tmp_path, use)
    text = """
        from agentd.plugin import Plugin
        plugin = Plugin("greeter")

        @plugin.setup
        async def begin(ctx):
            raise SystemExit(3)

        @plugin.teardown
        def end(ctx):
            raise SystemExit(4)
        """
    loaded = load_from(tmp_path, write(tmp_path, "exits_later.py", text))
    with pytest.raises(PluginLoadError, match=r"exits_later\.py:7: plugin greeter: its setup failed: 3"):
        await loaded.setup()
    await loaded.teardown()
