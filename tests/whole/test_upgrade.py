"""A daemon that is told to upgrade starts its successor, and tells its manager. tests/service has it under systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from agentd.control.client import Client
from agentd.control.refusal import ControlError
from tests.whole.test_take_over import Gated

_PATIENCE_S = 20.0


async def until_gone(pid: int) -> None:
    """Wait until a process has ended that is nobody's here."""
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(process, ended.set)
            await asyncio.wait_for(ended.wait(), _PATIENCE_S)
        finally:
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)


async def test_its_turn_ends_where_it_began_and_the_manager_is_told_of_the_successor(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(_PATIENCE_S)
        async with Gated(tmp_path) as gated:
            assert await gated.stop() == 0
            gated.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
            await gated.until_identity(lambda it: it["state"] == "live")
            gated.post("wait a")
            await gated.until_begun("wait a")
            client = Client(tmp_path / "state" / "control.sock")
            told = await asyncio.to_thread(client.upgrade)
            try:
                first = gated.process.pid
                assert (told["former_pid"], told["turns"]) == (first, 1)
                assert told["pid"] != first
                status = await asyncio.to_thread(client.status)
                assert status["pid"] == told["pid"]
                async with asyncio.timeout(_PATIENCE_S):
                    heard = [await asyncio.to_thread(manager.recv, 4_096)]
                    while not heard[-1].startswith(b"MAINPID="):
                        heard.append(await asyncio.to_thread(manager.recv, 4_096))
                    assert heard[-1].split() == [b"MAINPID=%d" % told["pid"], b"WATCHDOG=1"]
                    while heard[-1] != b"WATCHDOG=1":
                        heard.append(await asyncio.to_thread(manager.recv, 4_096))
                with pytest.raises(ControlError, match="1 turns still run in the process before it"):
                    await asyncio.to_thread(client.upgrade)
                gated.open("a")
                await gated.until_heard(f"1 wait a attempt 1 in {first}")
                assert await asyncio.to_thread(gated.process.wait, _PATIENCE_S) == 0
                await asyncio.to_thread(client.stop)
                await until_gone(told["pid"])
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(told["pid"], signal.SIGKILL)
        assert '"level":"error"' not in gated.log


async def test_what_nobody_would_look_after_is_not_started(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        client = Client(tmp_path / "state" / "control.sock")
        with pytest.raises(ControlError, match="start that one yourself: agentd run --take-over"):
            await asyncio.to_thread(client.upgrade)
        await gated.ends_well()


async def test_one_upgrade_at_a_time_and_none_outlives_a_stop(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        assert await gated.stop() == 0
        # Nobody listens there, which no daemon minds.
        gated.start(NOTIFY_SOCKET=str(tmp_path / "nobody"))
        await gated.until_identity(lambda it: it["state"] == "live")
        # The next generation of the plugin takes its time to load, and says who it is.
        (tmp_path / "slow.py").write_text(
            f"import os, pathlib, time\npathlib.Path({str(tmp_path)!r}, 'loading').write_text(str(os.getpid()))\n"
            "time.sleep(60)\n"
        )
        gated.configure(lambda text: text.replace("tests.whole.gated:plugin", "./slow.py"))
        client = Client(tmp_path / "state" / "control.sock")
        first = asyncio.ensure_future(asyncio.to_thread(client.upgrade))
        async with asyncio.timeout(_PATIENCE_S):
            while not (tmp_path / "loading").exists() or not (tmp_path / "loading").read_text():
                await asyncio.sleep(0.02)
        with pytest.raises(ControlError, match="another process is to take over already"):
            await asyncio.to_thread(client.upgrade)
        successor = int((tmp_path / "loading").read_text())
        assert await gated.stop() == 0
        await until_gone(successor)
        assert not Path(f"/proc/{successor}/exe").exists()
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], Exception)
