"""The official SDK, unchanged, works against the hub."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

PEER_PYTHON = Path(__file__).parents[2] / ".peers" / "bin" / "python"
SCRIPT = Path(__file__).parent / "peers" / "sdk_session.py"


async def run_peer(*arguments: str) -> dict[str, Any]:
    """Run the SDK's script in the virtual environment of its own and return its report."""
    if not PEER_PYTHON.exists():
        pytest.fail(f"{PEER_PYTHON} is missing: run `make peers` to install the official SDK beside agentd")
    process = await asyncio.create_subprocess_exec(
        str(PEER_PYTHON),
        str(SCRIPT),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()[-2000:]
    return json.loads(out)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """One session of the SDK against one hub, under the platform's own rules and limits."""

    async def session() -> dict[str, Any]:
        async with Hub(HubSettings()) as hub:
            found = await run_peer("session", hub.url, hub.ws_url)
            found["acks"] = hub.counters()["acks"]
            return found

    return asyncio.run(session())


def test_it_registers_and_knows_itself(report: dict[str, Any]) -> None:
    assert report["registered"] == ["alice", "bob"]


def test_it_sends_and_a_repeat_is_answered_with_the_first_message(report: dict[str, Any]) -> None:
    assert report["replayed"] is True


def test_it_drains_what_came_before_it_connected_and_streams_what_comes_after(report: dict[str, Any]) -> None:
    # "reply" is its own message, which its gap fill found in the history.
    assert report["streamed"] == ["one", "reply", "2", "3", "4", "5", "live"]
    assert report["seqs"] == [1, 2, 3, 4, 5, 6, 7]


def test_its_acks_settle_the_envelopes(report: dict[str, Any]) -> None:
    assert report["acks"] > 0
    assert report["undelivered_after_ack"] == 0


def test_its_sync_and_sync_ack_commit_by_cursor_once(report: dict[str, Any]) -> None:
    assert report["bob_sync"] == ["reply"]
    assert report["bob_acked"] == [1, 0]


def test_it_reads_history_both_ways(report: dict[str, Any]) -> None:
    assert report["history_after"] == [3, 4, 5, 6, 7]
    assert report["history_before"] == [3, 2, 1]


def test_it_understands_every_refusal(report: dict[str, Any]) -> None:
    assert report["awaiting_reply"] == ["alice", True]
    assert report["unknown_agent"] == "AGENT_NOT_FOUND"
    assert report["unknown_conversation"] == "CONVERSATION_NOT_FOUND"
    assert report["too_large"] == [413, "PAYLOAD_TOO_LARGE", True]


def test_it_sees_read_receipts_typing_and_presence(report: dict[str, Any]) -> None:
    assert report["read"] == 7
    assert report["typing"] == "alice"
    assert [report["presence_frame"], report["presence"]] == ["busy", "thinking"]


def test_its_lists_parse(report: dict[str, Any]) -> None:
    assert report["conversations"] == [[True, "bob"]]
    assert report["contacts"] == ["alice"]
    assert report["directory"] == ["bob"]
    assert [report["muted"], report["mute_status"]] == ["bob", None]


def test_it_stores_a_file_and_the_other_side_fetches_it_without_a_key(report: dict[str, Any]) -> None:
    assert report["attachment"] == [200, "hello, file", "text/plain"]


def test_its_idempotency_key_lets_a_call_happen_once(report: dict[str, Any]) -> None:
    assert report["once"] == [True, "second", 422, "IDEMPOTENCY_KEY_CONFLICT"]


def test_it_lives_in_a_group_from_invitation_to_deletion(report: dict[str, Any]) -> None:
    assert report["group"] == {
        "invited": ["invited"],
        "invites": [True],
        "members": [["alice", "admin"], ["bob", "member"]],
        "bob_saw": [["system", 1], ["text", 2]],
        "mentions": ["bob"],
        "deleted_frame": True,
        "gone": "alice",
    }


def test_a_rotated_key_ends_its_connection_for_good(report: dict[str, Any]) -> None:
    assert report["rotated"] == ["alice", 1008, True]
    assert report["old_key"] == 401


async def test_it_is_warned_of_a_backlog_and_then_refused() -> None:
    async with Hub(HubSettings(cold_rule=False, backlog_soft=3, backlog_hard=5)) as hub:
        key = hub.create_agent("sender")
        hub.create_agent("sleeper")
        report = await run_peer("backlog", hub.url, key)
    assert report["warnings"] == [["sleeper", 3], ["sleeper", 4], ["sleeper", 5]]
    assert report["refused"] == ["sleeper", 5]
