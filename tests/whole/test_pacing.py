"""The pace of sends against a hub that warns, refuses and waits: who is slow delays nobody, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd import config
from agentd.core.events import Content, Send
from agentd.journal.storage import Queued
from agentd.transport.rest import Rest
from agentd.wire.agentchat import AgentChat
from agentd.wire.agentchat.types import BACKLOG_HARD, BACKLOG_SOFT, FrameType

if TYPE_CHECKING:
    from tests.whole.conftest import Rig


async def begin(rig: Rig, *peers: str) -> dict[str, str]:
    """An identity, and peers without a connection. Returns the peers' keys."""
    rig.identity("agent")
    keys = {peer: rig.hub.create_agent(peer) for peer in peers}
    await rig.start()
    return keys


async def say(rig: Rig, target: str, *texts: str, expires_at: float | None = None) -> None:
    """Put messages into the outbox; their keys are their texts."""
    assert rig.daemon is not None
    sends = [
        Send(identity="agent", target=target, content=Content(text=text), client_msg_id=text, expires_at=expires_at)
        for text in texts
    ]
    await rig._journal.commit(*(Queued(send, time.time()) for send in sends))
    rig.daemon._queued(sends)


def accepted(rig: Rig, name: str) -> list[str]:
    """Keys beginning with this name that the hub has taken from the identity, in its order."""
    rows = rig.hub.ledger()
    return [row.client_msg_id for row in rows if row.sender == "agent" and row.client_msg_id.startswith(name)]


def keys(name: str, start: int, stop: int) -> list[str]:
    return [f"{name} {number}" for number in range(start, stop)]


def pacing(rig: Rig) -> Any:
    assert rig.daemon is not None
    sender = rig.daemon._supervisors["agent"].sender
    assert sender is not None
    return sender.pacing


async def read_all(rig: Rig, peer: str, key: str) -> None:
    """Let the peer fetch and acknowledge what waits for it."""
    platform = AgentChat(peer, rig.hub.url, lambda: key, peer, version="0")
    async with Rest(rig.hub.url, lambda: key, config.Rest()) as rest:
        while (page := platform.read_drain(await rest.perform(platform.drain_request(None)))).cursor is not None:
            await rest.perform(platform.drain_ack_request(page.cursor))


async def crosses_both_thresholds(rig: Rig, soft: int, hard: int) -> None:
    """A recipient passes the soft and then the hard limit, and reads in the end; another is sent to all the while."""
    peers = await begin(rig, "slow", "quick")
    rig.hub.create_agent("crowd")
    await fill(rig, soft - 2)
    await say(rig, "@slow", *keys("slow", 0, 3))
    await rig.until(lambda: len(accepted(rig, "slow")) == 3)
    await rig.until(lambda: pacing(rig).backlog_of("@slow") == soft + 1)
    slowed = pacing(rig).rate_of("@slow")
    assert slowed is not None
    assert slowed < pacing(rig).identity_rate / 10

    await fill(rig, hard)
    await say(rig, "@slow", *keys("slow", 3, 12))
    await rig.until(lambda: pacing(rig).backlog_of("@slow") == hard)
    await say(rig, "@quick", *keys("quick", 0, 20))
    await rig.until(lambda: len(accepted(rig, "quick")) == 20)
    assert accepted(rig, "slow") == keys("slow", 0, 3), "it is parked, and the other did not wait for it"
    assert accepted(rig, "quick") == keys("quick", 0, 20)
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 9)
    assert pacing(rig).rate_of("@quick") is None

    await read_all(rig, "slow", peers["slow"])
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0, timeout_s=60.0)
    assert accepted(rig, "slow") == keys("slow", 0, 12), "every message once, in order"
    assert pacing(rig).backlog_of("@slow") is None
    assert rig.status()[0]["outbox_refused"] == 0


async def fill(rig: Rig, undelivered: int) -> None:
    """Others write to the slow recipient until so much waits for it."""
    missing = undelivered - rig.hub.undelivered("slow")
    rig.hub.post("crowd", "slow", *["x"] * missing)
    assert rig.hub.undelivered("slow") == undelivered


async def test_a_recipient_that_crosses_both_thresholds_is_slowed_parked_and_resumed(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(backlog_soft=50, backlog_hard=100) as rig:
        await crosses_both_thresholds(rig, 50, 100)


@pytest.mark.soak
async def test_a_recipient_that_crosses_the_platforms_own_thresholds_is_slowed_parked_and_resumed(rig: Rig) -> None:
    assert (BACKLOG_SOFT, BACKLOG_HARD) == (5_000, 10_000)
    await crosses_both_thresholds(rig, BACKLOG_SOFT, BACKLOG_HARD)


async def test_a_send_that_is_parked_past_its_time_expires_and_what_is_behind_it_leaves_when_the_peer_has_read(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(backlog_soft=2, backlog_hard=3) as rig:
        peers = await begin(rig, "slow")
        rig.hub.create_agent("crowd")
        await fill(rig, 3)
        await say(rig, "@slow", "stale", expires_at=time.time() + 0.4)
        await say(rig, "@slow", "fresh")
        await rig.until(lambda: rig.status()[0]["outbox_expired"] == 1)
        assert rig.daemon is not None
        assert (await rig.daemon.operations.outbox_show("agent", "stale"))["state"] == "expired"
        assert rig.status()[0]["outbox_ready"] == 1, "what does not expire goes on waiting"
        await read_all(rig, "slow", peers["slow"])
        await rig.until(lambda: accepted(rig, "") == ["fresh"])


@asynccontextmanager
async def waiting_for_a_stranger(make_rig: Callable[..., Any]) -> AsyncIterator[Rig]:
    """A first message is with a stranger, and two more wait for its reply."""
    async with make_rig(cold_rule=True) as rig:
        await begin(rig, "stranger")
        await say(rig, "@stranger", *keys("cold", 0, 3))
        await rig.until(lambda: pacing(rig).awaiting == {"@stranger"})
        yield rig


async def test_a_restart_before_the_reply_asks_once_more_and_goes_on_waiting(make_rig: Callable[..., Any]) -> None:
    async with waiting_for_a_stranger(make_rig) as rig:
        await rig.stop()
        await rig.start()
        await rig.until(lambda: pacing(rig).awaiting == {"@stranger"})
        asked = rig.hub.counters()["rest.send"]
        assert rig.status()[0]["outbox_ready"] == 2
        assert accepted(rig, "cold") == keys("cold", 0, 1)
        await say(rig, "@stranger", "cold 3")
        rig.hub.post("stranger", "agent", "who is there?")
        await rig.until(lambda: len(accepted(rig, "cold")) == 4)
        assert accepted(rig, "cold") == keys("cold", 0, 4)
        await rig.until(lambda: rig.status()[0]["outbox_sent"] == 5)
        assert rig.hub.counters()["rest.send"] == asked + 3 + 1, "each once, and the answer to what it said"


async def test_a_send_that_waits_for_a_reply_expires_while_it_waits(make_rig: Callable[..., Any]) -> None:
    async with waiting_for_a_stranger(make_rig) as rig:
        assert rig.daemon is not None
        for key in keys("cold", 1, 3):
            await rig.daemon.operations.outbox_drop("agent", key)
        await say(rig, "@stranger", "stale", expires_at=time.time() + 0.3)
        await rig.until(lambda: rig.status()[0]["outbox_expired"] == 1)
        rig.hub.post("stranger", "agent", "who is there?")
        await rig.until(lambda: rig.status()[0]["outbox_sent"] == 2)
        assert "stale" not in accepted(rig, "")


async def test_a_warning_of_the_platform_slows_the_whole_identity_and_loses_nothing(rig: Rig) -> None:
    slow = config.Sending(rate_per_s=40.0, retry_first_s=0.05, retry_max_s=0.5)
    rig.settings = msgspec.structs.replace(rig.settings, sending=slow)
    await begin(rig, "one", "other")
    warning = {"endpoint": "/v1/messages", "limit": 60, "remaining": 3}
    service = rig.hub.service
    service.sockets.tell([service.accounts.get("agent").number], FrameType.RATE_LIMIT_WARNING, warning)
    await rig.until(lambda: pacing(rig).identity_rate <= 21.0)
    for peer in ("one", "other"):
        await say(rig, f"@{peer}", *keys(peer, 0, 8))
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
    for peer in ("one", "other"):
        assert accepted(rig, peer) == keys(peer, 0, 8)
    assert pacing(rig).identity_rate < 40.0, "it rises with time, and not at once"
    assert rig.hub.counters().get("rest.send") == 16, "nothing was refused"
