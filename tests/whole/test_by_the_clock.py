"""A whole daemon with the settings as they come: minutes until it says what is wrong, hours in which nothing is.

The clock of the loop goes on by itself whenever nobody has anything to do; sockets, disk and hub are real.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from agentd import config
from agentd.hub.faults import Action, Point, Rule
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from tests.whole.conftest import Rig
from tests.whole.readiness import Prober

MINUTE_S, HOUR_S = 60.0, 3_600.0
PATIENCE_S = 0.001  # for a thread that is about to answer: the one that writes to the disk, above all

PLUGIN = """
import asyncio
from pathlib import Path

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("plugin")


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "think":
        await asyncio.sleep(600)
    while message.text == "block" and not Path(__file__).with_name("released").exists():
        asyncio.get_running_loop().stand_still(5.0)
        await asyncio.sleep(10.0)
    ctx.reply("done")
"""


class IdleLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it, and stands while there is work."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._select = self._selector.select
        self._selector.select = self._look

    def time(self) -> float:
        return self._now

    def stand_still(self, seconds: float) -> None:
        """As code does that gives nobody else the loop."""
        self._now += seconds

    def _look(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return self._select(timeout)
        ready = self._select(PATIENCE_S)
        if not ready:
            self._now += timeout
        return ready


def in_virtual_time(folder: Path, scenario: Callable[[Rig, Prober], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Hub(HubSettings(cold_rule=False, sends_per_s=0)) as hub:
            rig = Rig(folder, hub)
            (folder / "plugin.py").write_text(PLUGIN)
            rig.plugin = {"use": str(folder / "plugin.py"), "timeout_s": 900.0}
            rig.settings = config.Agentd(http=config.Http(listen="127.0.0.1:0"))
            rig.audit_interval_s = config.Intake().audit_interval_s
            rig.identity("agent")
            for peer in ("peer", "other"):
                hub.create_agent(peer)
            await rig.start()
            try:
                await scenario(rig, Prober(rig))
            finally:
                await rig.stop()

    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        runner.run(whole())


async def passes(rig: Rig, prober: Prober, hours: float) -> None:
    """So long nothing happens; every half minute somebody looks, and finds it green."""
    loop = asyncio.get_running_loop()
    until = loop.time() + hours * HOUR_S
    while loop.time() < until:
        await asyncio.sleep(30.0)
        assert await prober.codes() == []
        assert rig.status()[0]["last_audit_age_s"] < 60.0
        assert rig.status()[0]["last_pong_age_s"] <= rig.settings.link.ping_interval_s + 1.0
    assert [each["reconnects"] for each in rig.status()] == [0]
    assert [change["state"] for change in rig.status()[0]["history"]] == ["off", "connecting", "catching_up", "live"]


async def answers(rig: Rig) -> None:
    rig.hub.post("peer", "agent", "hello")
    await rig.until(lambda: rig.hub.ledger()[-1].sender == "agent", 120.0)


@pytest.mark.parametrize("hours", [0.5, pytest.param(10.0, marks=pytest.mark.soak)])
def test_hours_of_silence_leave_it_green_and_the_next_message_is_answered(tmp_path: Path, hours: float) -> None:
    async def scenario(rig: Rig, prober: Prober) -> None:
        await answers(rig)
        await passes(rig, prober, hours)
        await answers(rig)

    in_virtual_time(tmp_path, scenario)


def test_a_turn_of_ten_minutes_leaves_it_green_and_holds_up_its_own_conversation_only(tmp_path: Path) -> None:
    async def scenario(rig: Rig, prober: Prober) -> None:
        rig.hub.post("peer", "agent", "think", "and this behind it")
        began = asyncio.get_running_loop().time()
        for _ in range(18):
            await asyncio.sleep(30.0)
            assert await prober.codes() == []
            rig.hub.post("other", "agent", "hello")
            await rig.until(lambda: rig.hub.ledger()[-1].sender == "agent", 20.0)
        assert rig.answers("peer") == []
        await rig.until(lambda: len(rig.answers("peer")) == 2, 120.0)
        assert asyncio.get_running_loop().time() - began >= 600.0
        assert await prober.codes() == []

    in_virtual_time(tmp_path, scenario)


class Trouble(Protocol):
    """Something that stops mail. codes: of which /readyz has to say one."""

    codes: frozenset[str]

    async def begin(self, rig: Rig) -> None: ...

    async def cure(self, rig: Rig) -> None: ...


class Revoked:
    """The platform refuses the key, until there is another one."""

    codes = frozenset({"key_refused"})

    async def begin(self, rig: Rig) -> None:
        self._key = rig.hub.rotate_key("agent")

    async def cure(self, rig: Rig) -> None:
        rig.keys["agent"] = self._key


class HalfOpen:
    """The other side is gone without a word, and nobody answers there: a ping finds out, or an audit."""

    codes = frozenset({"deaf", "silent", "not_connected"})

    async def begin(self, rig: Rig) -> None:
        rig.hub.faults.add(Rule(point=Point.UPGRADE, action=Action.HANG, times=None))
        rig.hub.afflict(Action.HALF_OPEN, "agent")

    async def cure(self, rig: Rig) -> None:
        rig.hub.faults.replace()


class Deaf:
    """The server has mail and pushes none, over this connection and the next ones."""

    codes = frozenset({"deaf"})

    async def begin(self, rig: Rig) -> None:
        rig.hub.faults.add(Rule(point=Point.ACCEPT, action=Action.DEAF, times=None))
        rig.hub.afflict(Action.DEAF, "agent")

    async def cure(self, rig: Rig) -> None:
        rig.hub.faults.replace()
        rig.hub.afflict(Action.CUT, "agent")


class Full:
    """The disk has no room."""

    codes = frozenset({"disk_full"})

    async def begin(self, rig: Rig) -> None:
        await self._limit(rig, 1)

    async def cure(self, rig: Rig) -> None:
        await self._limit(rig, 1_000_000)

    async def _limit(self, rig: Rig, pages: int) -> None:
        await rig._journal._connection.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))


class Hanging:
    """A commit does not come back from the disk."""

    codes = frozenset({"commit_hangs"})

    def __init__(self) -> None:
        self._over = threading.Event()

    async def begin(self, rig: Rig) -> None:
        self._hanging = asyncio.ensure_future(rig._journal._connection.run(lambda db: self._over.wait(60)))

    async def cure(self, rig: Rig) -> None:
        self._over.set()
        await self._hanging


class Blocked:
    """A handler keeps the loop to itself, every few seconds."""

    codes = frozenset({"loop_blocked"})

    async def begin(self, rig: Rig) -> None:
        rig.hub.post("other", "agent", "block")

    async def cure(self, rig: Rig) -> None:
        (rig.folder / "released").touch()


@pytest.mark.parametrize("trouble", [Revoked, HalfOpen, Deaf, Full, Hanging, Blocked])
def test_what_stops_mail_is_told_within_a_minute_and_when_it_is_over_all_mail_comes(
    tmp_path: Path, trouble: Callable[[], Trouble]
) -> None:
    async def scenario(rig: Rig, prober: Prober) -> None:
        loop = asyncio.get_running_loop()
        made = trouble()
        # As late as can be: everything has just been heard of, and been audited.
        await asyncio.sleep(MINUTE_S)
        while rig.status()[0]["last_audit_age_s"] > 1.0:
            await asyncio.sleep(0.5)
        await made.begin(rig)
        rig.hub.post("peer", "agent", *["x" * 20_000] * 10)
        began = loop.time()
        while not made.codes.intersection(told := await prober.codes()):
            assert loop.time() - began < MINUTE_S, told
            await asyncio.sleep(0.5)
        await asyncio.sleep(MINUTE_S / 2)
        assert await prober.codes(), "it lasts"
        await made.cure(rig)
        began = loop.time()
        while await prober.codes():
            assert loop.time() - began < 3 * MINUTE_S
            await asyncio.sleep(0.5)
        await rig.until(lambda: rig.answers("peer") == ["done"] * 10, 120.0)

    in_virtual_time(tmp_path, scenario)
