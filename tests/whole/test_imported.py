"""A conversation that moves to another machine goes on there."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from agentd import cli

if TYPE_CHECKING:
    from tests.whole.conftest import Rig


async def exported_to(rig: Rig, file: Path) -> None:
    """What `agentd export --to` writes: the events, without the lines around them that are for the client."""
    assert rig.daemon is not None
    pages: AsyncIterator[bytes] = await rig.daemon.operations.export(None, None, None)
    _, *events, _ = b"".join([page async for page in pages]).splitlines(keepends=True)
    file.write_bytes(b"".join(events))


async def import_into(rig: Rig, file: Path, *words: str) -> Result:
    (rig.folder / "agentd.toml").write_text("")
    command = ["import", str(file), "--state", str(rig.folder / "state"), "--config", str(rig.folder / "agentd.toml")]
    return await asyncio.to_thread(CliRunner().invoke, cli.cli, [*command, *words], prog_name="agentd")


async def test_a_conversation_goes_on_in_another_journal_and_nothing_is_handled_or_said_twice(rig: Rig) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "one", "two")
    await rig.until(lambda: len(rig.answers("peer")) == 2)
    await rig.until(lambda: rig.status()[0]["journaled"] == 4)
    file = rig.folder / "case.jsonl"
    await exported_to(rig, file)
    await rig.stop()
    shutil.rmtree(rig.folder / "state")
    rig.hub.post("peer", "agent", "three")  # while nobody is there

    told = await import_into(rig, file, "--json")
    assert told.exit_code == 0, told.output
    found = {name: json.loads(told.stdout)[name] for name in ("conversations", "events", "known")}
    assert found == {"conversations": 1, "events": 4, "known": 0}
    again = await import_into(rig, file)
    assert "passed over 4 events: the journal has them" in again.stderr

    await rig.start()
    await rig.until(lambda: len(rig.answers("peer")) == 3)
    rig.hub.post("peer", "agent", "four")
    await rig.until(lambda: len(rig.answers("peer")) == 4)
    conversation = rig.hub.conversation("peer", "agent")
    assert rig.seqs(conversation) == [1, 2, 5, 7]
    assert rig.answers("peer") == [f"noted {seq}" for seq in (1, 2, 5, 7)]
    await rig.assert_accounted()
    await rig.until(lambda: rig.status()[0]["journaled"] == 8)  # the echo of the last answer too

    # A replay may go back to what was imported.
    assert rig.daemon is not None
    [line] = await rig._journal.conversations("agent")
    assert await rig.daemon._dispatcher.rewind(rig.plugin_name, "agent", line.number, 0) == 8
    await rig.until(lambda: rig.seqs(conversation) == [1, 2, 5, 7, 1, 2, 5, 7])


async def test_what_the_file_lacks_at_its_end_is_fetched_and_handled(rig: Rig) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "one", "two", "three")
    await rig.until(lambda: len(rig.answers("peer")) == 3 and rig.status()[0]["journaled"] == 6)
    file = rig.folder / "case.jsonl"
    await exported_to(rig, file)
    await rig.stop()
    shutil.rmtree(rig.folder / "state")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))
    last = json.loads(lines[1])["seq"]
    assert (await import_into(rig, file)).exit_code == 0
    await rig.start()
    rig.hub.post("peer", "agent", "four")
    conversation = rig.hub.conversation("peer", "agent")
    expected = [row.seq for row in rig.hub.ledger(conversation) if row.sender == "peer" and row.seq > last]
    await rig.until(lambda: rig.seqs(conversation)[3:] == expected)


async def test_a_running_daemon_or_a_file_of_others_is_refused_with_the_remedy(rig: Rig) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "one")
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)
    file = rig.folder / "case.jsonl"
    await exported_to(rig, file)
    held = await import_into(rig, file)
    assert (held.exit_code, "Stop that one first" in held.stderr) == (1, True)
    await rig.stop()
    shutil.rmtree(rig.folder / "state")
    config = rig.folder / "other.toml"
    config.write_text('[identity.work]\nurl = "https://api.agentchat.me"\nkey = { env = "WORK_KEY" }\n')
    words = ["--config", str(config)]
    environ = {"WORK_KEY": "ac_live_0123456789abcdef0123456789"}

    def run(*more: str) -> Result:
        command = ["import", str(file), "--state", str(rig.folder / "state"), *words, *more]
        return CliRunner(env=environ).invoke(cli.cli, command, prog_name="agentd")

    refused = await asyncio.to_thread(run)
    assert refused.exit_code == 1
    assert "line 1: there is no identity agent in the configuration; add it there, or name one with --as" in (
        refused.stderr
    )
    moved = await asyncio.to_thread(run, "--as", "work")
    assert moved.exit_code == 0, moved.output
    file.write_bytes(file.read_bytes().replace(b'"payload":{"id":"', b'"payload":{"id":"x', 1))
    broken = await asyncio.to_thread(run, "--as", "work")
    assert "line 1: its payload is of another event" in broken.stderr


async def test_imported_mail_is_not_mixed_with_that_of_another_account(rig: Rig) -> None:
    rig.identity("agent")
    for name in ("peer", "stranger"):
        rig.hub.create_agent(name)
    await rig.start()
    rig.hub.post("peer", "agent", "one")
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)
    file = rig.folder / "case.jsonl"
    await exported_to(rig, file)
    await rig.stop()
    shutil.rmtree(rig.folder / "state")
    assert (await import_into(rig, file)).exit_code == 0
    rig.keys["agent"] = rig.hub.rotate_key("stranger")
    await rig.start(live=False)
    await rig.until(lambda: rig.states() == ["parked"])
    assert "the journal holds @agent's mail" in rig.status()[0]["state_reason"]


async def test_a_replay_of_the_last_hour_leaves_what_was_imported_in_that_hour_alone(rig: Rig) -> None:
    rig.identity("agent")
    for peer in ("old", "new"):
        rig.hub.create_agent(peer)
    await rig.start()
    rig.hub.post("old", "agent", "one", "two")
    await rig.until(lambda: len(rig.answers("old")) == 2 and rig.status()[0]["journaled"] == 4)
    file = rig.folder / "case.jsonl"
    await exported_to(rig, file)
    rows = [{**json.loads(line), "received_at": "2020-01-02T03:04:05.000Z"} for line in file.read_text().splitlines()]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    await rig.stop()
    shutil.rmtree(rig.folder / "state")

    began = time.time()
    rig.hub.post("new", "agent", "three")
    await rig.start()
    await rig.until(lambda: len(rig.answers("new")) == 1 and rig.status()[0]["journaled"] == 2)
    await rig.stop()
    assert "imported 4 events" in (await import_into(rig, file)).stderr
    await rig.start()
    assert rig.daemon is not None
    replay = rig.daemon.operations.replay
    for step, counts in (("count", {"events": 2, "conversations": 1}), ("set_back", {"events": 2, "conversations": 1})):
        *_, last = [line async for line in await replay(step, rig.plugin_name, None, None, None, began - 3_600)]
        assert {name: last[name] for name in counts} == counts
