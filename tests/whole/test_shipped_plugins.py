"""Plugins that come with agentd, in a daemon, against a hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agentd.core.events import Content

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.whole.conftest import Rig


async def own_messages(rig: Rig, identity: str) -> list[dict[str, Any]]:
    """What an identity has said, as its journal has it, in order."""
    return [json.loads(row.payload) for row in await rig._journal.read_log(identity, 0, 1_000) if row.source == "own"]


def said(rig: Rig, conversation: str, sender: str) -> int:
    return sum(row.sender == sender for row in rig.hub.ledger(conversation))


async def test_a_bridge_carries_both_ways_in_order_and_never_back(rig: Rig) -> None:
    for handle in ("bob", "ann"):
        rig.hub.create_agent(handle)
    for name in ("alice", "work"):
        rig.identity(name)
    group = rig.hub.create_group("ann", "the group", ["work"])
    sides = {"left": {"identity": "alice", "peer": "@bob"}, "right": {"identity": "work", "peer": group}}
    # With own words: those of the bridge itself come by again, and only their mark tells them apart.
    rig.plugin = {"use": "bridge", "config": {**sides, "own": True, "hops_max": 9}}
    await rig.start()
    direct = rig.hub.conversation("bob", "alice")
    rig.hub.post("bob", "alice", *(f"b{n}" for n in range(20)))
    rig.hub.post("ann", group, *(f"a{n}" for n in range(20)))
    await rig.until(lambda: said(rig, group, "work") == 20 and said(rig, direct, "alice") == 20)
    rig.hub.post("work", group, "from another client")
    rig.hub.post("ann", group, "a20")  # own words are not pushed; they are found by the hole that they make
    await rig.until(lambda: said(rig, direct, "alice") == 22)
    await rig.until(lambda: not any(each["pending"] or each["outbox_ready"] for each in rig.status()))
    await rig.until(
        lambda: [each["journaled"] for each in rig.status()] == [42, 42]
    )  # own words come with their answers
    assert said(rig, group, "work") == 20 + 1
    assert said(rig, direct, "alice") == 22

    bridged = [row for row in await own_messages(rig, "work") if "bridge" in (row["metadata"] or {})]
    assert [row["content"]["text"] for row in bridged] == [f"@bob: b{n}" for n in range(20)]
    texts = [row["content"]["text"] for row in await own_messages(rig, "alice")]
    assert texts == [*(f"@ann: a{n}" for n in range(20)), "@work: from another client", "@ann: a20"]


async def test_a_program_answers_through_the_daemon(rig: Rig, tmp_path: Path) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    program = tmp_path / "agent.sh"
    program.write_text("#!/bin/sh\nprintf 'You said: '\ncat\n")
    program.chmod(0o755)
    rig.plugin = {"use": "exec", "config": {"command": [str(program)], "format": "text"}}
    await rig.start()
    rig.hub.post("peer", "agent", "one", "two")
    await rig.until(lambda: said(rig, rig.hub.conversation("peer", "agent"), "agent") == 2)
    await rig.until(lambda: rig.status()[0]["journaled"] == 4)
    assert [row["content"]["text"] for row in await own_messages(rig, "agent")] == ["You said: one", "You said: two"]


async def test_a_log_holds_both_sides_of_a_conversation_in_order(rig: Rig, tmp_path: Path) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    file = tmp_path / "audit.jsonl"
    rig.plugin = {"use": "log", "config": {"file": str(file), "own": True, "payload": True}}
    daemon = await rig.start()
    rig.hub.post("peer", "agent", "question")
    await rig.until(lambda: rig.status()[0]["handled"] == 1)
    await daemon.operations.send("agent", "@peer", Content(text="answer"), 0.0, None)
    await rig.until(lambda: rig.status()[0]["handled"] == 2)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["seq"], line["own"], line["text"]) for line in lines] == [(1, False, "question"), (2, True, "answer")]
    assert json.loads(lines[0]["payload"])["content"]["text"] == "question"
