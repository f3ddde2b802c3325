"""A new process takes over from one that runs: who answers what, what is refused, and what becomes of every turn."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from agentd.control.client import Client
from agentd.control.refusal import ControlError
from agentd.handover import messages
from agentd.handover.line import Line
from agentd.journal.sqlite import SCHEMA
from tests.crash.succession import Succession

PEER = "peer"
_PATIENCE_S = 20.0
_OTHER_PROTOCOL = "import agentd.handover.messages as m; m.PROTOCOL += 1"
_OTHER_TABLES = (
    "import agentd.daemon as d, msgspec; d.SCHEMA = msgspec.structs.replace(d.SCHEMA, version=d.SCHEMA.version + 1)"
)


class Gated(Succession):
    """A daemon whose turns end when a gate is opened. settings: lines for [plugin.ledger]. dispatch: likewise."""

    plugin = "tests.whole.gated:plugin"
    lawful: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, settings: str = "", dispatch: str = "") -> None:
        super().__init__(folder, peers=0)
        self._plugin_settings = settings
        self._dispatch = dispatch

    def _configuration(self) -> str:
        text = super()._configuration().replace("[plugin.ledger]", f"[plugin.ledger]\n{self._plugin_settings}")
        return f"{text}\n[agentd.dispatch]\nretry_first_s = 0.1\n{self._dispatch}\n"

    def configure(self, change: Callable[[str], str]) -> None:
        self._config.write_text(change(self._config.read_text()))

    async def __aenter__(self) -> Gated:
        await super().__aenter__()
        self.peer(PEER)
        self.start()
        await self.until_identity(lambda it: it["state"] == "live")
        return self

    def post(self, *texts: str) -> None:
        self.hub.post(PEER, self.identities[0], *texts)

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def begun(self) -> list[list[Any]]:
        """(text, process) of each turn that began."""
        file = self.folder / "handled.jsonl.begun"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    async def until_begun(self, *texts: str) -> None:
        await self._until(lambda: {text for text, _ in self.begun()} >= set(texts))

    async def until_heard(self, *texts: str) -> None:
        """Wait until the peer has heard exactly these, in this order."""
        await self._until(lambda: len(self.heard()) >= len(texts))
        assert self.heard() == list(texts)

    def heard(self) -> list[str]:
        return self._heard(PEER)

    async def _until(self, reached: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not reached():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"begun {self.begun()}, heard {self.heard()}\n{self.log[-6000:]}") from None

    async def refused(self, program: Sequence[str] = ("-m", "agentd")) -> str:
        """Have a process try to take over in vain; returns what it logs. The other one goes on."""
        before = len(self.log)
        process = self.begin_take_over(program)
        assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 1
        status = await self.status()
        assert status is not None
        assert status["pid"] == self.process.pid
        return self.log[before:]

    async def ends_well(self) -> None:
        await self.until_identity(lambda it: not (it["pending"] or it["outbox_ready"]))
        await self.until_former_ended()
        assert await self.stop() == 0


def changed(change: str) -> tuple[str, str]:
    """The command of a version in which this is different."""
    return "-c", f"{change}; from agentd.cli import main; main()"


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_a_turn_ends_where_it_began_and_its_lane_waits_for_that(tmp_path: Path, isolate: str) -> None:
    async with Gated(tmp_path, f'isolate = "{isolate}"') as gated:
        gated.post("wait a", "wait b", "wait c")
        await gated.until_begun("wait a")
        first = gated.begun()[0][1]
        await gated.take_over()
        gated.post("wait d")
        for gate in "bcd":
            gated.open(gate)
        await asyncio.sleep(0.3)
        assert [text for text, _ in gated.begun()] == ["wait a"]
        assert gated.former[0].poll() is None
        status = await gated.status()
        assert status is not None
        assert status["turns_in_predecessor"] == 1
        gated.open("a")
        await gated._until(lambda: len(gated.heard()) == 4)
        second = gated.begun()[-1][1]
        assert first != second
        assert gated.heard() == [
            f"1 wait a attempt 1 in {first}",
            *(f"{count} wait {gate} attempt 1 in {second}" for count, gate in enumerate("bcd", 2)),
        ]
        await gated.ends_well()


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_such_a_turn_reads_and_sends_through_the_successor(tmp_path: Path, isolate: str) -> None:
    async with Gated(tmp_path, f'isolate = "{isolate}"') as gated:
        other = gated.peer("other")
        gated.post("now a")
        await gated.until_begun("now a")
        await gated.take_over()
        gated.open("b")
        gated.hub.post(other, gated.identities[0], "thread b")  # counts up what the turn is about to read
        await gated._until(lambda: gated._heard(other))
        first = gated.begun()[0][1]
        gated.open("a")
        await gated.until_heard("at once now a 1", f"1 now a attempt 1 in {first}")
        await gated.ends_well()


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_such_a_turn_calls_the_platform_itself(tmp_path: Path, isolate: str) -> None:
    async with Gated(tmp_path, f'isolate = "{isolate}"') as gated:
        gated.post("call a")
        await gated.until_begun("call a")
        former = gated.process.pid
        await gated.take_over()
        gated.open("a")
        await gated._until(gated.heard)
        assert gated.heard()[0].startswith(f"called as {gated.identities[0]} in ")
        assert isolate == "process" or gated.heard()[0].endswith(str(former))
        await gated.ends_well()


async def test_threads_and_batches_end_where_they_began(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        other = gated.peer("other")
        gated.post("batch a", "batch b")
        gated.hub.post(other, gated.identities[0], "thread t")
        await gated.until_begun("batch a", "thread t")
        first = gated.process.pid
        await gated.take_over()
        gated.post("batch c")
        gated.open("t")
        gated.open("a")
        gated.open("c")
        await gated.until_heard(f"batch a + batch b in {first}", f"batch c in {gated.process.pid}")
        await gated._until(lambda: gated._heard(other) == [f"0 thread t in {first}"])
        await gated.ends_well()


async def test_a_timer_that_runs_is_not_due_again(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        gated.open("a")
        gated.post("wake a")
        await gated.until_begun("wake a-timer")
        first = gated.process.pid
        await gated.take_over()
        await asyncio.sleep(0.3)
        gated.open("a-timer")
        await gated.until_heard(f"1 wake a attempt 1 in {first}", f"woken 1 wake a in {first}")
        assert len(gated.begun()) == 2
        await gated.ends_well()


async def test_a_turn_that_fails_there_is_tried_again_or_buried_here(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        other = gated.peer("other")
        gated.post("fail a")
        gated.hub.post(other, gated.identities[0], "never a", "wait a")
        await gated.until_begun("fail a", "never a")
        await gated.take_over()
        gated.open("a")
        await gated.until_heard(f"1 fail a attempt 2 in {gated.process.pid}")
        await gated._until(lambda: gated._heard(other) == [f"1 wait a attempt 1 in {gated.process.pid}"])
        await gated.until_identity(lambda it: it["dead"] == 1)
        await gated.ends_well()


async def test_turns_that_outlast_the_time_for_them_are_given_back_uncounted(tmp_path: Path) -> None:
    async with Gated(tmp_path, dispatch="hand_over_timeout_s = 0.5") as gated:
        gated.post("wait a", "wait b")
        await gated.until_begun("wait a")
        await gated.take_over()
        await gated.until_former_ended()
        gated.open("a")
        gated.open("b")
        second = gated.process.pid
        await gated.until_heard(f"1 wait a attempt 1 in {second}", f"2 wait b attempt 1 in {second}")
        await gated.ends_well()


async def test_a_process_that_was_taken_over_gives_its_turns_back_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        gated.post("wait a")
        await gated.until_begun("wait a")
        await gated.take_over()
        gated.former[0].terminate()
        await gated.until_former_ended()
        gated.open("a")
        await gated.until_heard(f"1 wait a attempt 1 in {gated.process.pid}")
        await gated.ends_well()


async def test_nothing_comes_of_a_turn_whose_plugin_the_successor_does_not_serve(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        gated.post("wait a")
        await gated.until_begun("wait a")
        gated.configure(lambda text: text.replace('plugins = ["ledger"]', ""))
        await gated.take_over()
        gated.open("a")
        await gated.until_former_ended()
        assert gated.heard() == []
        assert "not served here any more" in gated.log
        assert await gated.stop() == 0


async def test_a_second_signal_ends_a_process_that_waits_for_its_successor(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        released = asyncio.Event()
        mute = Line(msgspec.msgpack.Decoder(messages.ToSuccessor).decode, lambda message: released.set())
        server = await asyncio.get_running_loop().create_unix_server(lambda: mute, str(tmp_path / "mute"))
        known = {"protocol": messages.PROTOCOL, "tables": SCHEMA.version, "version": "0", "pid": os.getpid()}
        client = Client(tmp_path / "state" / "control.sock")
        await asyncio.to_thread(client.hand_over, {**known, "socket": str(tmp_path / "mute")})
        await released.wait()
        async with asyncio.timeout(_PATIENCE_S):
            while gated.process.poll() is None:
                gated.process.terminate()
                await asyncio.sleep(0.05)
        assert gated.process.returncode == -signal.SIGTERM
        server.close()
        gated.start()
        gated.open("a")
        gated.post("wait a")
        await gated.until_heard(f"1 wait a attempt 1 in {gated.process.pid}")
        await gated.ends_well()


async def test_where_no_daemon_runs_it_starts_as_ever(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        assert await gated.stop() == 0
        process = gated.begin_take_over()
        await gated.until_serving(process)
        gated.succeeded(process, killed=True)
        assert "there is nothing to take over" in gated.log
        gated.open("a")
        gated.post("wait a")
        await gated.until_heard(f"1 wait a attempt 1 in {process.pid}")
        assert await gated.stop() == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [(_OTHER_PROTOCOL, "takes over by"), (_OTHER_TABLES, "its journal is of version")],
)
async def test_another_version_that_cannot_take_over_is_told_so_and_changes_nothing(
    tmp_path: Path, change: str, told: str
) -> None:
    async with Gated(tmp_path) as gated:
        gated.post("wait a", "wait b")
        await gated.until_begun("wait a")
        log = await gated.refused(changed(change))
        assert told in log
        assert "stop this one, then start that one" in log
        gated.open("a")
        gated.open("b")
        first = gated.process.pid
        await gated.until_heard(f"1 wait a attempt 1 in {first}", f"2 wait b attempt 1 in {first}")
        await gated.ends_well()


async def test_a_plugin_that_cannot_be_loaded_leaves_the_running_daemon_alone(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        whole = gated._config.read_text()
        gated.configure(lambda text: text.replace("tests.whole.gated:plugin", "tests.whole.gone:plugin"))
        process = gated.begin_take_over()
        assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 78
        gated._config.write_text(whole)
        gated.open("a")
        gated.post("wait a")
        await gated.until_heard(f"1 wait a attempt 1 in {gated.process.pid}")
        assert "takes over" not in gated.log
        await gated.ends_well()


async def test_while_turns_of_the_process_before_run_there_is_no_next_take_over(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        gated.post("wait a")
        await gated.until_begun("wait a")
        await gated.take_over()
        assert "1 turns still run in the process before it; wait for their end" in await gated.refused()
        gated.open("a")
        await gated.until_former_ended()
        await gated.take_over()
        await gated.ends_well()


async def test_of_two_that_would_take_over_at_the_same_time_one_does(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        both = [gated.begin_take_over() for _ in range(2)]
        codes: list[int | None] = []

        def one_is_out() -> bool:
            codes[:] = [process.poll() for process in both]
            return any(code is not None for code in codes)

        # Far enough apart, one takes over from the other: then both have done it, and the first ends well.
        await gated._until(one_is_out)
        assert {code for code in codes if code is not None} <= {0, 1}
        winner: subprocess.Popen[bytes] = both[codes.index(None)]
        await gated.until_serving(winner)
        gated.succeeded(winner)
        gated.former += [process for process in both if process.returncode == 0]
        gated.open("a")
        gated.post("wait a")
        await gated.until_heard(f"1 wait a attempt 1 in {winner.pid}")
        await gated.ends_well()


async def test_a_generation_that_does_not_want_an_event_commits_what_its_turn_did_all_the_same(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        other = gated.peer("other")
        gated.post("wait a")
        gated.hub.post(other, gated.identities[0], "fail a")
        await gated.until_begun("wait a", "fail a")
        first = gated.process.pid
        gated.configure(lambda text: text.replace("tests.whole.gated:plugin", "tests.whole.deaf:plugin"))
        await gated.take_over()
        gated.open("a")
        await gated.until_heard(f"1 wait a attempt 1 in {first}")
        await gated.ends_well()
        assert gated._heard(other) == []


async def test_a_client_finds_somebody_at_every_moment(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        client, over = Client(tmp_path / "state" / "control.sock"), threading.Event()
        told: list[str] = []

        def ask() -> None:
            while not over.is_set():
                try:
                    client.status()
                except ControlError as error:
                    told.append(error.code)

        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        for _ in range(3):
            await gated.take_over()
            await gated.until_former_ended()
        over.set()
        await asking
        assert set(told) <= {"HANDING_OVER"}
        await gated.ends_well()


async def test_a_daemon_under_a_service_manager_hands_over_to_a_process_of_the_same_one_only(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        async with Gated(tmp_path) as gated:
            assert await gated.stop() == 0
            gated.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
            await gated.until_identity(lambda it: it["state"] == "live")
            assert "have it start that one: agentd upgrade" in await gated.refused()
            process = gated.begin_take_over(NOTIFY_SOCKET=str(tmp_path / "notify"))
            await gated.until_serving(process)
            gated.succeeded(process)
            told: list[bytes] = []
            # Two processes speak, and whose word comes first is not said.
            moved = b"MAINPID=%d\nWATCHDOG=1" % process.pid
            while moved not in told or told.count(b"READY=1") < 2:
                told.append(await asyncio.to_thread(manager.recv, 4_096))
            assert sum(each.startswith(b"MAINPID=") for each in told) == 1
            await gated.ends_well()


async def test_the_daemons_own_hub_is_not_taken_over(tmp_path: Path) -> None:
    async with Gated(tmp_path) as gated:
        gated.configure(lambda text: "")
        process = gated.begin_take_over()
        assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 78
        assert "own hub cannot be taken over" in gated.log


async def test_the_page_and_the_metrics_move_with_the_rest(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Gated(tmp_path, dispatch=f'[agentd.http]\nlisten = "127.0.0.1:{port}"') as gated:
        gated.post("wait a")
        await gated.until_begun("wait a")
        for _ in range(2):
            await gated.take_over()
            with await asyncio.to_thread(
                urllib.request.urlopen, f"http://127.0.0.1:{port}/healthz", None, 10
            ) as answer:
                assert answer.status == 200
            gated.open("a")
            await gated.until_former_ended()
        assert "cannot listen" not in gated.log
        await gated.ends_well()
