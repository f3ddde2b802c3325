"""A daemon process, asked and told by the commands that people use."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from agentd.core.health import STATES
from agentd.demo import ledger
from agentd.demo.proof import IMPATIENT, Proof
from agentd.hub.faults import Action, Point, Rule
from agentd.testing import Harness

TIMEOUT_S = 20.0

COUNTS = (
    "conversations",
    "journaled",
    "handled",
    "pending",
    "gaps_open",
    "absent",
    "dead",
    "outbox_ready",
    "outbox_unknown",
)
AGES = ("last_pong_age_s", "last_inbound_age_s", "last_audit_age_s", "last_commit_age_s")

STUCK = """
import asyncio
import time
from pathlib import Path

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("stuck")


def note(word: str) -> None:
    with open(Path(__file__).parent / "notes", "a") as notes:
        print(word, file=notes)


@plugin.on(Message)
{handler}
"""

STUCK_COROUTINE = STUCK.format(
    handler="""async def wait(message: Message, ctx: Context) -> None:
    note(message.text)
    await asyncio.sleep(600)
"""
)
STUCK_THREAD = STUCK.format(
    handler="""def block(message: Message, ctx: Context) -> None:
    note(message.text)
    time.sleep(600)
"""
)


def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}


def start(folder: Path, *words: str, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agentd", *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environ(),
        cwd=folder,
        text=True,
    )


async def agentd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as a person would in this folder, while the hub goes on here."""
    process = start(folder, *words)
    try:
        out, err = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


async def answer(folder: Path, *words: str) -> Any:
    """What a command prints as JSON; it must succeed, and print nothing else."""
    done = await agentd(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@asynccontextmanager
async def running(folder: Path, *, identities: int = 1) -> AsyncIterator[Proof]:
    async with Proof(folder, identities) as proof:
        proof.start()
        await proof.until_live()
        yield proof


@pytest.fixture
async def proof(tmp_path: Path) -> AsyncIterator[Proof]:
    async with running(tmp_path) as proof:
        yield proof


async def until(proof: Proof, condition: Mapping[str, Any]) -> dict[str, Any]:
    """Wait until the first identity's status has these values. Returns it."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            status = await proof.status()
            if status is not None:
                found: dict[str, Any] = status["identities"][0]
                if all(found.get(name) == value for name, value in condition.items()):
                    return found
            await asyncio.sleep(0.02)


async def until_noted(folder: Path, count: int) -> list[str]:
    """Wait until the stuck plugin has begun so many turns."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            notes = (folder / "notes").read_text().split() if (folder / "notes").exists() else []
            if len(notes) >= count:
                return notes
            await asyncio.sleep(0.02)


# --- status ---


async def test_status_tells_everything_that_is_promised_of_an_identity(proof: Proof) -> None:
    proof.peer("peer")
    proof.hub.post("peer", "agent-1", *map(str, range(5)))
    assert await proof.until_answered(TIMEOUT_S)
    asked = await until(proof, {"outbox_ready": 0, "pending": 0, "gaps_open": 0})
    found = (await answer(proof.folder, "status"))["identities"][0]
    assert {name: found[name] for name in COUNTS} == {name: asked[name] for name in COUNTS}
    assert found["state"] in STATES
    assert datetime.fromisoformat(found["state_since"]).tzinfo is not None
    for name in COUNTS:
        assert type(found[name]) is int, name
    for name in AGES:
        assert found[name] is None or type(found[name]) is float, name
    assert found["last_commit_age_s"] >= 0.0
    assert (found["state"], found["conversations"], found["handled"]) == ("live", 1, found["journaled"])
    assert found["journaled"] == 10, "five messages and five answers"
    told = [change["state"] for change in found["history"]]
    assert told[:2] == ["off", "connecting"]
    assert told[-1] == "live"
    assert set(told) <= set(STATES)


async def test_status_can_be_asked_for_one_identity_and_refuses_an_unknown_one(tmp_path: Path) -> None:
    async with running(tmp_path, identities=2):
        assert [each["name"] for each in (await answer(tmp_path, "status"))["identities"]] == ["agent-1", "agent-2"]
        assert [each["name"] for each in (await answer(tmp_path, "status", "agent-2"))["identities"]] == ["agent-2"]
        unknown = await agentd(tmp_path, "status", "nobody")
        assert unknown.returncode == 1
        assert "nobody" in unknown.stderr


async def test_status_for_people_names_the_identity_and_its_state(proof: Proof) -> None:
    done = await agentd(proof.folder, "status")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("agent-1"))
    assert "live" in line


async def test_an_identity_whose_key_is_refused_is_parked_and_the_daemon_lives_on(tmp_path: Path) -> None:
    async with running(tmp_path, identities=2) as proof:
        proof.hub.rotate_key("agent-1")
        parked = await until(proof, {"state": "parked"})
        assert "key" in parked["state_reason"]
        status = await answer(tmp_path, "status")
        assert [each["state"] for each in status["identities"]] == ["parked", "live"]


# --- send, gaps, tail ---


async def test_send_shows_the_answer_and_a_repeated_key_says_nothing_twice(proof: Proof) -> None:
    proof.peer("peer")
    sending = asyncio.create_task(answer(proof.folder, "send", "@peer", "hello", "--key", "k-1", "--wait", "15"))
    async with asyncio.timeout(TIMEOUT_S):
        while not proof.hub.ledger():
            await asyncio.sleep(0.01)
    proof.hub.post("peer", "agent-1", "hello yourself")
    sent = await sending
    assert (sent["client_msg_id"], sent["state"], sent["seq"]) == ("k-1", "sent", 1)
    assert sent["reply"] == {"text": "hello yourself", "sender": "peer", "seq": 2}
    again = await answer(proof.folder, "send", "@peer", "hello", "--key", "k-1", "--wait", "0")
    assert (again["state"], again["seq"], again["reply"]) == ("sent", 1, None)
    assert [row.client_msg_id for row in proof.hub.ledger() if row.sender == "agent-1"].count("k-1") == 1


async def test_send_says_why_the_platform_refused(proof: Proof) -> None:
    done = await agentd(proof.folder, "send", "@nobody-here", "hello")
    assert done.returncode == 1
    assert "AGENT_NOT_FOUND" in done.stderr


async def test_gaps_lists_open_ones_and_on_request_what_became_of_the_others(proof: Proof) -> None:
    proof.peer("peer")
    proof.hub.post("peer", "agent-1", "first")
    assert await proof.until_answered(TIMEOUT_S)
    await until(proof, {"outbox_ready": 0, "journaled": 2})
    proof.hub.faults.add(
        Rule(point=Point.PUSH, action=Action.DROP, seqs=(3, 5), times=2),
        Rule(point=Point.REST, action=Action.STATUS, status=503, route="history", times=None),
        Rule(point=Point.REST, action=Action.STATUS, status=503, route="sync", times=None),
    )
    proof.hub.post("peer", "agent-1", "lost", "lost too", "after")
    await until(proof, {"gaps_open": 1})
    (gap,) = await answer(proof.folder, "gaps")
    assert (gap["identity"], gap["start"], gap["stop"], gap["closed_at"]) == ("agent-1", 3, 5, None)
    assert gap["conversation"] == proof.hub.conversation("peer", "agent-1")
    proof.hub.faults.replace()
    await until(proof, {"gaps_open": 0, "pending": 0})
    assert await answer(proof.folder, "gaps") == []
    (gap,) = await answer(proof.folder, "gaps", "agent-1", "--all")
    assert (gap["outcome"], gap["absent"]) == ("filled", 0)
    assert gap["closed_at"] > gap["found_at"]


async def test_tail_shows_what_was_committed_and_follows_what_comes(proof: Proof) -> None:
    proof.peer("peer")
    proof.hub.post("peer", "agent-1", "before")
    assert await proof.until_answered(TIMEOUT_S)
    await until(proof, {"journaled": 2})
    following = start(proof.folder, "tail", "--since", "0", "--json")
    assert following.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            seen = [json.loads(await asyncio.to_thread(following.stdout.readline)) for _ in range(2)]
            proof.hub.post("peer", "agent-1", "while it follows")
            seen += [json.loads(await asyncio.to_thread(following.stdout.readline)) for _ in range(2)]
        following.send_signal(signal.SIGINT)
        await asyncio.to_thread(following.communicate, timeout=TIMEOUT_S)
    finally:
        following.kill()
    assert [row["seq"] for row in seen] == [1, 2, 3, 4]
    assert [row["text"] for row in seen] == ["before", "noted 1", "while it follows", "noted 3"]
    assert [row["own"] for row in seen] == [False, True, False, True]
    assert [row["position"] for row in seen] == sorted(row["position"] for row in seen)
    assert following.returncode == 130


async def test_a_conversation_is_exported_to_a_file_that_a_plugins_test_replays(proof: Proof) -> None:
    for peer in ("peer", "other"):
        proof.peer(peer)
        proof.hub.post(peer, "agent-1", f"from {peer}", f"again from {peer}")
    assert await proof.until_answered(TIMEOUT_S)
    await until(proof, {"journaled": 8, "pending": 0})
    conversation = proof.hub.conversation("peer", "agent-1")
    file = proof.folder / "case.jsonl"
    done = await agentd(proof.folder, "export", "--conversation", conversation, "--since", "1h", "--to", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"exported 4 events to {file}\n")
    async with Harness(ledger.plugin, {"file": str(proof.folder / "replayed")}, identity="agent-1") as h:
        replayed = await h.replay(file)
        assert h.texts == ["noted 1", "noted 2"]
    assert [(event.seq, event.own) for event in replayed] == [(1, False), (2, False), (3, True), (4, True)]
    everything = await agentd(proof.folder, "export", "--as", "agent-1")
    assert {json.loads(line)["conversation"] for line in everything.stdout.splitlines()} > {conversation}
    assert everything.stderr == "exported 8 events\n"


async def test_explain_tells_which_handler_has_an_event_and_fails_for_one_that_there_is_not(proof: Proof) -> None:
    proof.peer("peer")
    proof.hub.post("peer", "agent-1", "hello")
    assert await proof.until_answered(TIMEOUT_S)
    await until(proof, {"journaled": 2, "pending": 0})
    id_ = proof.hub.ledger()[0].id
    async with asyncio.timeout(TIMEOUT_S):
        while True:  # a cursor may reach the disk a moment after the answer
            (found,) = (await answer(proof.folder, "explain", id_))["events"]
            (lane,) = found["plugins"]
            if lane["fate"]["state"] != "waiting":
                break
    assert (found["event"]["text"], lane["plugin"], lane["fate"]["state"]) == ("hello", "ledger", "handled")
    told = (await agentd(proof.folder, "explain", str(found["event"]["position"]))).stdout
    assert "plugin ledger: handled" in told
    assert "ledger.py:" in told
    unknown = await agentd(proof.folder, "explain", "msg_nowhere")
    assert unknown.returncode == 1
    assert "msg_nowhere" in unknown.stderr
    assert "name its id, or its position" in unknown.stderr


@pytest.mark.parametrize(
    "words",
    [("status",), ("send", "@peer", "hello"), ("gaps",), ("tail",), ("export",), ("explain", "msg_1")],
    ids=["status", "send", "gaps", "tail", "export", "explain"],
)
async def test_a_command_that_finds_no_daemon_exits_with_69_and_says_how_to_start_one(
    tmp_path: Path, words: Sequence[str]
) -> None:
    done = await agentd(tmp_path, *words)
    assert (done.returncode, done.stdout) == (69, "")
    assert "agentd run" in done.stderr


# --- start and stop ---


@asynccontextmanager
async def stuck(folder: Path, source: str, drain_timeout_s: float) -> AsyncIterator[Proof]:
    """A daemon, one of whose handlers has begun and will not return."""
    (folder / "stuck.py").write_text(source)
    settings = {**IMPATIENT, "dispatch": {"drain_timeout_s": drain_timeout_s}}
    async with Proof(folder, 1, settings=settings) as proof:
        configuration = (folder / "agentd.toml").read_text()
        kept = [line for line in configuration.splitlines() if not line.startswith("config =")]
        (folder / "agentd.toml").write_text(
            "\n".join(kept).replace('use = "agentd.demo.ledger:plugin"', 'use = "./stuck.py"')
        )
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", "agent-1", "never-ends")
        await until_noted(folder, 1)
        yield proof


async def test_sigterm_ends_an_idle_daemon_with_0(proof: Proof) -> None:
    assert await proof.stop() == 0
    assert (await agentd(proof.folder, "status")).returncode == 69


@pytest.mark.parametrize("source", [STUCK_COROUTINE, STUCK_THREAD], ids=["coroutine", "thread"])
async def test_sigterm_waits_for_a_handler_until_the_deadline_and_ends_with_0(tmp_path: Path, source: str) -> None:
    async with stuck(tmp_path, source, drain_timeout_s=1.0) as proof:
        async with asyncio.timeout(10.0):
            assert await proof.stop() == 0
        assert "Traceback" not in proof.log
        proof.start()
        assert await until_noted(tmp_path, 2) == ["never-ends", "never-ends"], "given back, not lost"


async def test_a_second_sigterm_ends_the_daemon_at_once(tmp_path: Path) -> None:
    async with stuck(tmp_path, STUCK_COROUTINE, drain_timeout_s=600.0) as proof:
        stopping = asyncio.create_task(proof.stop())
        async with asyncio.timeout(10.0):
            while '"stopping"' not in proof.log:
                await asyncio.sleep(0.01)
            assert not stopping.done()
            assert await proof.stop() == -signal.SIGTERM
            assert await stopping == -signal.SIGTERM
        proof.start()
        assert await until_noted(tmp_path, 2) == ["never-ends", "never-ends"]


async def test_a_second_daemon_on_one_state_is_refused_and_told_who_has_it(proof: Proof) -> None:
    first = (await answer(proof.folder, "status"))["pid"]
    second = await agentd(proof.folder, "run", "--config", "agentd.toml")
    assert second.returncode not in (0, None)
    assert f"pid {first}" in second.stderr
    assert "Stop that one first" in second.stderr
    assert "Traceback" not in second.stderr
    assert (await answer(proof.folder, "status"))["pid"] == first
    assert proof.running


async def test_a_plugin_that_is_written_wrongly_keeps_the_daemon_from_starting_and_is_named(tmp_path: Path) -> None:
    async with Proof(tmp_path, 1):
        plugin = "from agentd.plugin import Message, Plugin\nplugin = Plugin('wrong')\n"
        (tmp_path / "wrong.py").write_text(f"{plugin}\n@plugin.on(Message)\nasync def handle(message): ...\n")
        configuration = (tmp_path / "agentd.toml").read_text()
        (tmp_path / "agentd.toml").write_text(configuration.replace("agentd.demo.ledger:plugin", "./wrong.py"))
        done = await agentd(tmp_path, "run", "--config", "agentd.toml")
        assert done.returncode == 78
        assert f"{tmp_path / 'wrong.py'}:" in done.stderr
        assert "handle" in done.stderr
        assert "Traceback" not in done.stderr


async def test_without_a_configuration_it_brings_its_own_hub_and_an_agent_that_echoes(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        daemon = start(tmp_path, "run", output=log.fileno())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while (done := await agentd(tmp_path, "status", "--json")).returncode == 69:
                assert daemon.poll() is None, (tmp_path / "log").read_text()
        status = json.loads(done.stdout)
        assert status["hub_url"].startswith("http://127.0.0.1:")
        assert {each["name"] for each in status["identities"]} == {"me", "echo"}
        said = await agentd(tmp_path, "send", "@echo", "hello")
        assert said.returncode == 0, said.stderr
        assert said.stdout == "echo: hello\n"
        again = await agentd(tmp_path, "send", "@echo", "once more")
        assert again.stdout == "echo: once more\n"
        assert "agentd send @echo" in (tmp_path / "log").read_text(), "it says what to try next"
        daemon.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.wait, TIMEOUT_S) == 0
    finally:
        daemon.kill()
        daemon.wait()


async def test_what_it_says_to_try_next_can_be_copied_whatever_the_folder_is_called(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        daemon = start(tmp_path, "run", "--state", "it's here", output=log.fileno())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while "Ctrl-C stops it" not in (told := (tmp_path / "log").read_text()):
                assert daemon.poll() is None, told
                await asyncio.sleep(0.02)
        (line,) = [each for each in told.splitlines() if "who is connected" in each]
        words = shlex.split(line.partition("who is connected")[0])
        assert words[-3:] == ["status", "--state", str(tmp_path / "it's here")]
    finally:
        daemon.terminate()
        assert await asyncio.to_thread(daemon.wait, TIMEOUT_S) == 0
