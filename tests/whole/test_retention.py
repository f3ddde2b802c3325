"""A running daemon lets go of what is handled and old, and of nothing else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from agentd import config
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from tests.whole.conftest import QUICK, Rig

_A_MOMENT_DAYS = 0.5 / 86_400


async def test_what_is_handled_goes_when_it_is_old_and_mail_goes_on(tmp_path: Path) -> None:
    async with Hub(HubSettings(cold_rule=False)) as hub:
        rig = Rig(tmp_path, hub)
        hub.create_agent("peer")
        rig.identity("alice")
        bounds = config.Retention(events_max_age_days=_A_MOMENT_DAYS, outbox_max_age_days=_A_MOMENT_DAYS, every_s=0.2)
        rig.settings = msgspec.structs.replace(QUICK, retention=bounds)
        await rig.start()
        try:
            hub.post("peer", "alice", "first")
            await until_trimmed(rig, 1)
            hub.post("peer", "alice", "second")
            await until_trimmed(rig, 2)
            assert await rig._journal.read_log(None, 0, 100) == []
            assert [row.send.content.text for row in await rig._journal.outbox_list("alice", ["sent"], 10)] == [
                None
            ] * 2
        finally:
            await rig.stop()


async def test_a_lane_that_is_set_back_over_what_is_gone_goes_on_with_what_is_there(tmp_path: Path) -> None:
    async with Hub(HubSettings(cold_rule=False)) as hub:
        rig = Rig(tmp_path, hub)
        hub.create_agent("peer")
        rig.identity("alice")
        bounds = config.Retention(events_max_age_days=_A_MOMENT_DAYS, outbox_max_age_days=0, every_s=0.2)
        rig.settings = msgspec.structs.replace(QUICK, retention=bounds)
        daemon = await rig.start()
        try:
            hub.post("peer", "alice", "first", "second")
            await until_trimmed(rig, 2, sends=False)
            hub.post("peer", "alice", "third")
            await rig.until(lambda: len(rig.handled()) == 3)
            [conversation] = await rig._journal.conversations("alice")
            await daemon._dispatcher.rewind("plugin", "alice", conversation.number, 0)
            hub.post("peer", "alice", "fourth")
            await rig.until(lambda: rig.handled()[-1].seq > rig.handled()[2].seq)
            await rig.until(lambda: all(each["pending"] == 0 for each in rig.status()))
            assert await rig._journal.dead("alice", 10) == []
        finally:
            await rig.stop()


async def test_a_reader_that_does_not_go_on_lets_the_file_beside_the_journal_grow_no_further(tmp_path: Path) -> None:
    async with Hub(HubSettings(cold_rule=False)) as hub:
        rig = Rig(tmp_path, hub)
        hub.create_agent("peer")
        rig.identity("alice")
        daemon = await rig.start()
        try:
            hub.post("peer", "alice", *("first " * 5_000 for _ in range(40)))
            await rig.until_handled(40)
            pages = await daemon.operations.export("alice", None, None)
            assert b"up_to" in await anext(pages)
            at_first = rig._journal.size_bytes
            for _ in range(20):
                hub.post("peer", "alice", *("more " * 6_000 for _ in range(40)))
                await asyncio.sleep(0)
                await rig.until(lambda: all(each["pending"] == 0 for each in rig.status()))
            await rig.until_handled(840)
            assert rig._journal.size_bytes > at_first + 20_000_000, "what was written is in the file"
            assert rig._journal.wal_bytes < 20_000_000, "and the one beside it was begun anew"
            rest = b"".join([page async for page in pages])
            assert rest.count(b"first first") >= 40
        finally:
            await rig.stop()


async def until_trimmed(rig: Rig, events: int, *, sends: bool = True) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        traces = await rig._journal.trimmed(100)
        gone = {what: sum(trace.rows for trace in traces if trace.what == what) for what in ("event", "outbox")}
        if gone["event"] >= events and (not sends or gone["outbox"] >= events):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not trimmed: {traces}")
