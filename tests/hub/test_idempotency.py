"""A changing call under an Idempotency-Key is carried out once."""

from __future__ import annotations

import asyncio

import pytest

from agentd.hub.faults import Action, Point, Rule
from tests.hub.conftest import Peer, Reply, World

KEY = {"idempotency-key": "turn-1-a0"}


async def group(peer: Peer, name: str = "Ants", headers: dict[str, str] = KEY) -> Reply:
    return await peer.call("POST", "/v1/groups", {"name": name}, headers)


async def test_a_repeat_gets_the_first_answer_and_nothing_happens_again(world: World) -> None:
    alice, bob = world.peers("alice", "bob")
    first, again = await group(alice), await group(alice)
    assert (first.status, again.status) == (201, 201)
    assert again.body == first.body
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    assert len(await alice.get("/v1/conversations")) == 1
    # Keys belong to one agent each.
    assert "idempotent-replay" not in (await group(bob)).headers


async def test_a_refusal_is_kept_too(world: World) -> None:
    alice = world.peer("alice")
    refused = await alice.call("POST", "/v1/contacts", {"handle": "late-comer"}, KEY)
    world.peer("late-comer")
    again = await alice.call("POST", "/v1/contacts", {"handle": "late-comer"}, KEY)
    assert (refused.status, again.status, again.body) == (404, 404, refused.body)


async def test_the_same_key_for_another_call_is_a_conflict(world: World) -> None:
    alice = world.peer("alice")
    await group(alice)
    other = await group(alice, "Bees")
    assert (other.status, other.json["code"]) == (422, "IDEMPOTENCY_KEY_CONFLICT")
    elsewhere = await alice.call("POST", "/v1/contacts", {"name": "Ants"}, KEY)
    assert elsewhere.status == 422


async def test_a_second_call_while_the_first_one_runs_is_told_to_come_back(world: World) -> None:
    alice = world.peer("alice")
    delay = Rule(point=Point.REST, action=Action.DELAY, route="create_group", delay_s=0.3, times=1)
    world.hub.faults.add(delay)
    first = asyncio.ensure_future(group(alice))
    while world.hub.faults.fired["rest.delay"] == 0:
        await asyncio.sleep(0.01)
    meanwhile = await group(alice)
    assert (meanwhile.status, meanwhile.json["code"]) == (409, "IDEMPOTENT_IN_PROGRESS")
    assert (await first).status == 201
    assert (await group(alice)).body == (await first).body


async def test_a_failure_of_the_server_is_not_kept(world: World) -> None:
    alice = world.peer("alice")
    world.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, route="create_group", status=503, times=1))
    assert (await group(alice)).status == 503
    assert (await group(alice)).status == 201


@pytest.mark.parametrize("key", ["short", "x" * 129, "with space", "ümlaut-key"])
async def test_a_key_of_another_form_is_refused(world: World, key: str) -> None:
    reply = await group(world.peer("alice"), headers={"idempotency-key": key})
    assert (reply.status, reply.json["code"]) == (400, "IDEMPOTENCY_KEY_INVALID")


async def test_reading_takes_no_notice_of_keys(world: World) -> None:
    alice = world.peer("alice")
    for _ in range(2):
        reply = await alice.call("GET", "/v1/agents/me", headers=KEY)
        assert "idempotent-replay" not in reply.headers
