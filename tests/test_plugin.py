"""The page that plugin authors read, word for word, and that a plugin needs nothing but `agentd.plugin`."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd import plugin as api
from agentd.config import PluginSettings
from agentd.errors import RetryLater
from agentd.host.context import TurnContext
from agentd.host.lifecycle import load
from agentd.host.state import Scope
from agentd.plugin import Context, Message, Plugin, PluginContext, State
from agentd.testing import Harness

GREETER = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("greeter")

@plugin.on(Message, text=r"^hello\\b")
async def greet(message: Message, ctx: Context) -> None:
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    ctx.reply(f"hello number {count}")
"""

TYPED = """
import re

import msgspec

from agentd.plugin import Context, Gap, Message, Plugin, PluginContext, StreamReset


class Config(msgspec.Struct, frozen=True):
    greeting: str = "Hello"


plugin = Plugin("greeter", config=Config, version="1.2")
bare = Plugin("bare")


@plugin.setup
async def open_things(ctx: PluginContext[Config]) -> None:
    ctx.log.info("greeting is %s", ctx.config.greeting)


@plugin.on(Message, sender={"@bob", "build-*"}, text=re.compile("hi"), mentioned=True, timeout_s=30, attempts=3)
async def greet(message: Message, ctx: Context[Config]) -> None:
    ctx.reply(ctx.config.greeting + " " + message.sender, data={"attempt": ctx.attempt})


@plugin.on(Gap)
def lost(gap: Gap, ctx: Context[Config]) -> None:
    ctx.send("@owner", f"{gap.absent} lost since {ctx.wait(ctx.plugin_state.get('since', str, 'ever'))}")


@bare.on(StreamReset, where=lambda reset: reset.top > 1)
async def reset(reset: StreamReset, ctx: Context) -> None:
    anything = ctx.config
    ctx.plugin_state.delete("x")
"""

CALLING = """
from agentd.apis import AgentChatApi, Contact, DirectoryRow
from agentd.plugin import Context, Message, Plugin, Refused, Unavailable

plugin = Plugin("calling")


async def known(api: AgentChatApi) -> tuple[Contact, ...]:
    return await api.contacts.list(limit=5)


@plugin.on(Message)
async def look(message: Message, ctx: Context) -> None:
    if ctx.api.platform != "agentchat":
        return
    try:
        names: list[str] = [contact.handle for contact in await known(ctx.api)]
        rows: list[DirectoryRow] = [row async for row in ctx.api.directory.search("bo")]
        earlier: tuple[Message, ...] = await ctx.api.conversations.history(message.conversation, after_seq=0)
    except Refused as error:
        ctx.reply(f"{error.status} {error.details}")
    except Unavailable as error:
        ctx.log.info("again in %s s", error.retry_after_s)


@plugin.on(Message)
def wait(message: Message, ctx: Context) -> None:
    stored: str = ctx.wait(ctx.api.attachments.upload(b"x", "x.txt", "text/plain", to="bob"))
"""

MISCALLED = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("calling")


@plugin.on(Message)
async def look(message: Message, ctx: Context) -> None:
    await ctx.api.contacts.add(handel="bob")
"""

WRONG = """
from agentd.plugin import Context, Message, Plugin, Typing

plugin = Plugin("wrong")

@plugin.on(Message)
async def greet(message: Typing, ctx: Context) -> None: ...
"""


async def nothing_stored(plugin: str, conversation: int, key: str) -> bytes | None:
    return None


async def test_the_smallest_plugin_runs_as_it_is_documented(tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(GREETER)
    loaded = load("greeter", PluginSettings(use="./greeter.py"), tmp_path, nothing_stored)
    async with Harness(loaded.plugin) as h:
        await h.message("hello there")
        await h.message("good bye")
        await h.message("hello again")
        assert h.texts == ["hello number 1", "hello number 2"]
    await loaded.teardown()


@pytest.mark.parametrize(
    ("text", "accepted"), [(GREETER, True), (TYPED, True), (CALLING, True), (MISCALLED, False), (WRONG, False)]
)
def test_a_type_checker_takes_right_plugins_and_refuses_a_wrong_one(tmp_path: Path, text: str, accepted: bool) -> None:
    (tmp_path / "bot.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", str(tmp_path), "bot.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode == 0) == accepted, checked.stdout


def test_what_handlers_get_has_every_name_that_the_protocols_promise() -> None:
    for promised, given in ((Context, TurnContext), (PluginContext, TurnContext), (State, Scope)):
        names = {name for each in promised.__mro__ for name in vars(each) if not name.startswith("_")}
        assert [name for name in names if not hasattr(given, name)] == []


def test_everything_that_is_offered_is_documented_and_there() -> None:
    for name in api.__all__:
        assert getattr(api, name).__doc__, name


def test_declaring_runs_nothing_and_leaves_functions_as_they_are() -> None:
    plugin = Plugin("p")

    async def handle(message: Message, ctx: Context) -> None: ...
    async def around(event: Message, ctx: Context) -> AsyncIterator[None]:
        yield

    async def hook(ctx: PluginContext) -> None: ...

    assert plugin.on(Message)(handle) is handle
    assert plugin.middleware(around) is around
    assert plugin.setup(hook) is hook
    assert plugin.teardown(hook) is hook
    assert [declared.function for declared in plugin.declared] == [handle]


def test_an_author_can_say_when_to_try_again() -> None:
    assert RetryLater(5.0).after_s == 5.0
