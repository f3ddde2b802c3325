"""Two hundred identities in one daemon, of which one goes wrong in every way that an identity can. The others live on
as if nothing were: no reconnect, no change of state, nothing left with the server, and every message answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd import config
from agentd.hub.faults import Action, Point, Rule
from tests.whole.readiness import QUICK_HEALTH, QUICK_LINK, Prober

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

BAD = "bad"
OTHERS = [f"agent-{number}" for number in range(199)]

PLUGIN = """
import asyncio
from pathlib import Path

import msgspec

from agentd.plugin import Context, Message, Plugin


class Config(msgspec.Struct, frozen=True):
    folder: str


plugin = Plugin("plugin", config=Config)


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    if message.text == "slow":
        await asyncio.sleep(0.01)
    if message.text == "raise" and not (Path(ctx.config.folder) / "mended").exists():
        raise PermissionError("its model refuses the key")
    while message.text == "wait" and not (Path(ctx.config.folder) / "release").exists():
        await asyncio.sleep(0.02)
    ctx.reply(f"{message.text} to you")
"""


class Crowd:
    """The daemon with its two hundred, all live."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.hub = rig.hub
        self.prober = Prober(rig)
        for number in range(40):
            self.hub.create_agent(f"peer-{number}")

    async def begin(self) -> None:
        rig = self.rig
        (rig.folder / "plugin.py").write_text(PLUGIN)
        rig.plugin = {"use": str(rig.folder / "plugin.py"), "config": {"folder": str(rig.folder)}, "timeout_s": 600.0}
        rig.audit_interval_s = 2.0
        intake = msgspec.structs.replace(rig.settings.intake, undispatched_high=2_000, undispatched_low=400)
        # Two hundred on one core beside their own hub: they are given more time than one alone.
        link = msgspec.structs.replace(QUICK_LINK, ping_interval_s=1.0, ping_timeout_s=2.0, hello_timeout_s=3.0)
        rig.settings = msgspec.structs.replace(
            rig.settings,
            http=config.Http(listen="127.0.0.1:0"),
            health=msgspec.structs.replace(QUICK_HEALTH, lag_s=5.0, commit_s=5.0),
            link=msgspec.structs.replace(link, connect_timeout_s=3.0, dials_per_s=1_000.0),
            intake=intake,
        )
        for name in (BAD, *OTHERS):
            rig.identity(name)
        await rig.start(live=False)
        await rig.until(lambda: rig.states() == ["live"] * 200, 60.0)

    def others(self) -> dict[str, tuple[int, int, int]]:
        """What would show that one of them noticed something: changes of state, reconnects, messages not taken."""
        return {
            each["name"]: (len(each["history"]), each["reconnects"], each["shed"])
            for each in self.rig.status()
            if each["name"] != BAD
        }

    def plugin(self) -> dict[str, Any]:
        """How it fares."""
        assert self.rig.daemon is not None
        return self.rig.daemon.operations.status()["plugins"][0]

    async def red_for(self, code: str) -> None:
        await self.prober.until_red(code)
        _, told = await self.prober.ask()
        assert {each["identity"] for each in told["reasons"]} == {BAD}

    async def others_are_served(self) -> None:
        """Each gets a message and answers it, whatever the bad one does meanwhile."""
        before = self.hub.ledger()[-1].position if self.hub.ledger() else 0
        for number, name in enumerate(OTHERS):
            self.hub.post(f"peer-{number % 10}", name, "hello")
        await self.rig.until(lambda: {row.sender for row in self.hub.ledger(after=before)} >= set(OTHERS), 30.0)

    def flood(self, text: str, messages: int) -> None:
        """From every peer, so many messages of this text for the bad one."""
        for number in range(40):
            self.hub.post(f"peer-{number}", BAD, *[text] * messages)

    async def until_bad_has_answered_all(self) -> None:
        """Nothing that it was sent is lost, whatever went wrong."""

        def is_through() -> bool:
            bad = next(each for each in self.rig.status() if each["name"] == BAD)
            return not (bad["pending"] or bad["outbox_ready"])

        async with asyncio.timeout(180.0):
            while not is_through():
                await asyncio.sleep(0.5)
        ours = {self.hub.conversation(f"peer-{number}", BAD) for number in range(40)}
        rows = [row for row in self.hub.ledger() if row.conversation in ours and not row.former]
        assert sum(row.sender == BAD for row in rows) == sum(row.sender != BAD for row in rows)


@pytest.fixture
async def crowd(rig: Rig) -> AsyncIterator[Crowd]:
    made = Crowd(rig)
    await made.begin()
    yield made
    (rig.folder / "release").touch()


@asynccontextmanager
async def with_a_key_that_was_revoked(crowd: Crowd) -> AsyncIterator[str]:
    key = crowd.hub.rotate_key(BAD)
    yield "key_refused"
    crowd.rig.keys[BAD] = key


@asynccontextmanager
async def half_open(crowd: Crowd) -> AsyncIterator[str]:
    crowd.hub.faults.add(Rule(point=Point.ACCEPT, action=Action.HANG, identity=BAD, times=None))
    crowd.hub.afflict(Action.HALF_OPEN, BAD)
    yield "not_connected"


@asynccontextmanager
async def deaf(crowd: Crowd) -> AsyncIterator[str]:
    crowd.hub.faults.add(Rule(point=Point.ACCEPT, action=Action.DEAF, identity=BAD, times=None))
    crowd.hub.afflict(Action.DEAF, BAD)
    crowd.hub.post("peer-0", BAD, "nobody pushes this")
    yield "deaf"


@asynccontextmanager
async def cut_at_once_whenever_it_connects(crowd: Crowd) -> AsyncIterator[str]:
    crowd.hub.faults.add(Rule(point=Point.ACCEPT, action=Action.CUT, identity=BAD, times=None))
    crowd.hub.afflict(Action.CUT, BAD)
    yield "not_connected"


@asynccontextmanager
async def refused_every_request(crowd: Crowd) -> AsyncIterator[str]:
    crowd.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, identity=BAD, times=None))
    crowd.hub.afflict(Action.CUT, BAD)
    yield "not_connected"


@asynccontextmanager
async def slower_than_its_mail(crowd: Crowd) -> AsyncIterator[str]:
    crowd.flood("slow", 60)
    yield "shedding"


@asynccontextmanager
async def hanging_in_every_conversation(crowd: Crowd) -> AsyncIterator[str]:
    crowd.flood("wait", 60)
    yield ""
    (crowd.rig.folder / "release").touch()


@asynccontextmanager
async def failing_in_every_conversation(crowd: Crowd) -> AsyncIterator[str]:
    crowd.flood("raise", 1)
    await crowd.rig.until(lambda: crowd.plugin()["waiting_identities"] != [], 60.0)  # behind what is left of the flood
    yield ""
    (crowd.rig.folder / "mended").touch()
    assert [each["identity"] for each in crowd.plugin()["waiting_identities"]] == [BAD]


async def test_one_that_goes_wrong_in_every_way_is_noticed_by_no_other(crowd: Crowd) -> None:
    await crowd.others_are_served()
    before = crowd.others()
    for trouble in (
        with_a_key_that_was_revoked,
        half_open,
        deaf,
        cut_at_once_whenever_it_connects,
        refused_every_request,
        slower_than_its_mail,
        failing_in_every_conversation,
        hanging_in_every_conversation,
    ):
        async with trouble(crowd) as code:
            if code:
                await crowd.red_for(code)
            await crowd.others_are_served()
        crowd.hub.faults.replace()
        await crowd.prober.until_green(30.0)
        assert crowd.others() == before, trouble.__name__
    await crowd.until_bad_has_answered_all()
