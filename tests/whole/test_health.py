"""/readyz of a whole daemon: red for what stops mail, green again when it is over, green through what does not."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from agentd import config
from agentd.control.readings import limits
from agentd.hub.faults import Action, Point, Rule
from tests.whole.readiness import QUICK_HEALTH, QUICK_LINK, Prober

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

PLUGIN = """
import asyncio
import time
from pathlib import Path

import msgspec

from agentd.plugin import Context, Message, Plugin


class Config(msgspec.Struct, frozen=True):
    folder: str


plugin = Plugin("trial", config=Config)


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    if message.text == "block the loop":
        time.sleep(1.0)
    while message.text == "wait" and not (Path(ctx.config.folder) / "release").exists():
        await asyncio.sleep(0.02)
    ctx.reply("done")
"""


async def begin(rig: Rig, *names: str, **agentd: Any) -> Prober:
    (rig.folder / "trial.py").write_text(PLUGIN)
    rig.plugin = {"use": str(rig.folder / "trial.py"), "config": {"folder": str(rig.folder)}, "timeout_s": 600.0}
    rig.audit_interval_s = 0.4
    rig.settings = msgspec.structs.replace(
        rig.settings,
        **{"http": config.Http(listen="127.0.0.1:0"), "health": QUICK_HEALTH, "link": QUICK_LINK, **agentd},
    )
    for name in names or ("agent",):
        rig.identity(name)
    rig.hub.create_agent("peer")
    await rig.start()
    prober = Prober(rig)
    await prober.until_green()
    return prober


async def test_a_revoked_key_is_red_and_a_new_one_green(rig: Rig) -> None:
    prober = await begin(rig, "agent", "other")
    key = rig.hub.rotate_key("agent")
    reason = await prober.until_red("key_refused")
    assert reason["identity"] == "agent"
    rig.keys["agent"] = key
    await prober.until_green()


async def test_a_half_open_socket_is_red_and_stays_it_until_there_is_a_connection(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.faults.add(Rule(point=Point.UPGRADE, action=Action.HANG, times=None))
    rig.hub.afflict(Action.HALF_OPEN, "agent")
    async with asyncio.timeout(10):
        while not await prober.codes():
            await asyncio.sleep(0.02)
    until = asyncio.get_running_loop().time() + 2.0
    while asyncio.get_running_loop().time() < until:
        assert set(await prober.codes()) & {"silent", "not_connected"}
        await asyncio.sleep(0.02)
    rig.hub.faults.replace()
    await prober.until_green()


async def test_a_server_that_pushes_nothing_although_it_has_mail_is_red(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.afflict(Action.DEAF, "agent")
    rig.hub.post("peer", "agent", "nobody pushes this")
    reason = await prober.until_red("deaf")
    assert reason["identity"] == "agent"
    await prober.until_green()
    await rig.until(lambda: [row.sender for row in rig.hub.ledger()][-1] == "agent")


async def test_a_server_that_stays_deaf_over_every_reconnect_stays_red_while_mail_comes(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.faults.add(Rule(point=Point.ACCEPT, action=Action.DEAF, times=None))
    rig.hub.afflict(Action.DEAF, "agent")
    rig.hub.post("peer", "agent", "nobody pushes this")
    await prober.until_red("deaf")
    for number in range(12):
        rig.hub.post("peer", "agent", f"nor this, {number}")
        await asyncio.sleep(0.25)
        assert await prober.codes() == ["deaf"]
    rig.hub.faults.replace()
    rig.hub.afflict(Action.CUT, "agent")
    await prober.until_green()


async def test_a_full_disk_is_red_until_there_is_room(rig: Rig) -> None:
    prober = await begin(rig, journal=config.JournalSettings(full_retry_s=0.05))

    async def limit(pages: int) -> None:
        await rig._journal._connection.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))

    await limit(1)
    rig.hub.post("peer", "agent", *["x" * 20_000] * 10)
    await prober.until_red("disk_full")
    await limit(1_000_000)
    await prober.until_green()


async def test_a_commit_that_hangs_is_red_until_it_is_through(rig: Rig) -> None:
    prober = await begin(rig)
    go_on = threading.Event()
    hung = asyncio.ensure_future(rig._journal._connection.run(lambda db: go_on.wait(30)))
    try:
        rig.hub.post("peer", "agent", "hello")
        await prober.until_red("commit_hangs")
        assert (await prober.ask("/healthz"))[0] == 200, "the process is alive all the same"
    finally:
        go_on.set()
    assert await hung
    await prober.until_green()


async def test_a_blocked_loop_is_red_for_a_while_and_says_where_to_look(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.post("peer", "agent", "block the loop")
    reason = await prober.until_red("loop_blocked")
    assert "the log names the code" in reason["words"]
    await prober.until_green()


async def test_a_backlog_past_its_mark_is_red_until_it_is_below_it(rig: Rig) -> None:
    quick = msgspec.structs.replace(rig.settings.intake, undispatched_high=5, undispatched_low=1)
    prober = await begin(rig, intake=quick)
    rig.hub.post("peer", "agent", *["wait"] * 20)
    reason = await prober.until_red("shedding")
    assert "behind" in reason["words"]
    (rig.folder / "release").touch()
    await prober.until_green()
    await rig.until(lambda: sum(row.sender == "agent" for row in rig.hub.ledger()) == 20)


async def test_a_turn_longer_than_every_limit_leaves_it_green_and_so_does_silence(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.post("peer", "agent", "wait", "behind it")
    await prober.stays_green(3.0)
    (rig.folder / "release").touch()
    await rig.until(lambda: sum(row.sender == "agent" for row in rig.hub.ledger()) == 2)
    await prober.stays_green(2.0)


async def test_a_short_cut_of_the_connection_leaves_it_green(rig: Rig) -> None:
    prober = await begin(rig)
    rig.hub.afflict(Action.CUT, "agent")
    await prober.stays_green(1.0)
    assert rig.status()[0]["reconnects"] == 1


async def test_before_the_first_connection_it_is_red(rig: Rig) -> None:
    rig.hub.faults.add(Rule(point=Point.UPGRADE, action=Action.STATUS, status=503, times=None))
    rig.settings = msgspec.structs.replace(
        rig.settings, http=config.Http(listen="127.0.0.1:0"), health=QUICK_HEALTH, link=QUICK_LINK
    )
    rig.identity("agent")
    await rig.start(live=False)
    prober = Prober(rig)
    assert await prober.codes() == ["not_connected"]
    rig.hub.faults.replace()
    await prober.until_green()


def test_with_the_settings_as_they_come_everything_is_told_within_a_minute() -> None:
    """The longest that each takes, from what it is made of; a refused key, shedding and a full disk count at once."""
    settings = config.Agentd()
    bounds = limits(settings)
    audit_jitter, push_grace_s, catching_up_s = 1.2, 3.0, 5.0
    longest_s = {
        "half-open": bounds.silent_s,
        "no connection": bounds.reconnect_s,
        "deaf": settings.intake.audit_interval_s * audit_jitter + push_grace_s + catching_up_s,
        "commit": bounds.commit_s,
        "loop": bounds.lag_s,
    }
    assert {name: s for name, s in longest_s.items() if s > 60} == {}


@pytest.mark.parametrize("path", ["/metrics", "/"])
async def test_a_whole_daemon_answers_with_its_own_numbers(rig: Rig, path: str) -> None:
    await begin(rig, "alice", "bob")
    rig.hub.post("peer", "alice", "hello")
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 1)
    assert rig.daemon is not None
    token = (Path(rig.folder) / "state" / "http_token").read_text().strip()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(rig.daemon.operations.status()["http_url"] + path) as answer,
    ):
        text = await answer.text()
    expected = {
        "/metrics": [
            'agentd_identity_state{identity="alice",state="live"} 1',
            'agentd_outbox_sends{identity="alice",state="sent"} 1',
            'agentd_pacing_sends_per_second{identity="bob"} 1000',
            'agentd_breaker_standing{plugin="plugin",standing="closed"} 1',
            'agentd_handler_seconds_count{plugin="plugin",outcome="handled"}',
            "agentd_ready 1",
        ],
        "/": ['id="part-identity-alice"', 'id="part-identity-bob"', 'id="plugin-plugin"', "Mail is flowing"],
    }
    for each in expected[path]:
        assert each in text
