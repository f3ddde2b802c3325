"""Files go in and out at addresses that need no key, once, for those whom they are for."""

from __future__ import annotations

import hashlib
from typing import Any

import aiohttp
import pytest

from tests.hub.conftest import Peer, Start, World

CONTENT = b"%PDF-1.7 a small one"


def wanted(content: bytes = CONTENT, **changes: Any) -> dict[str, Any]:
    plain = {
        "filename": "a.pdf",
        "content_type": "application/pdf",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "to": "bob",
    }
    return {name: value for name, value in {**plain, **changes}.items() if value is not None}


async def put(url: str, content: bytes) -> int:
    async with aiohttp.ClientSession() as session, session.put(url, data=content) as answer:
        return answer.status


async def got(url: str) -> tuple[int, str, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, answer.content_type, await answer.read()


async def stored(peer: Peer, **changes: Any) -> str:
    upload = await peer.post("/v1/uploads", wanted(**changes))
    assert await put(upload["upload_url"], CONTENT) == 200
    return str(upload["attachment_id"])


async def located(peer: Peer, attachment: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"{peer.hub.url}/v1/attachments/{attachment}",
            headers={"authorization": f"Bearer {peer.key}"},
            allow_redirects=False,
        ) as answer,
    ):
        assert answer.status == 302
        return answer.headers["location"]


async def test_what_one_stores_the_other_fetches_without_a_key_and_once(world: World) -> None:
    alice, bob = world.peers("alice", "bob")
    attachment = await stored(alice)
    where = await located(bob, attachment)
    assert await got(where) == (200, "application/pdf", CONTENT)
    assert (await got(where))[0] == 404
    assert await got(await located(bob, attachment)) == (200, "application/pdf", CONTENT)


async def test_a_stranger_does_not_learn_that_there_is_a_file(world: World) -> None:
    alice, _, carol = world.peers("alice", "bob", "carol")
    attachment = await stored(alice)
    assert (await carol.call("GET", f"/v1/attachments/{attachment}")).status == 404
    assert (await carol.call("GET", "/v1/attachments/att_nothing")).status == 404


async def test_a_file_for_a_group_is_for_those_who_are_in_it(world: World) -> None:
    alice, bob, carol = world.peers("alice", "bob", "carol")
    group = world.hub.create_group("alice", "Ants", ["bob"])
    attachment = await stored(alice, to=None, conversation_id=group)
    assert await got(await located(bob, attachment)) == (200, "application/pdf", CONTENT)
    assert (await carol.call("GET", f"/v1/attachments/{attachment}")).status == 404


async def test_other_bytes_than_were_promised_are_not_taken_and_the_address_is_spent(world: World) -> None:
    alice, bob = world.peers("alice", "bob")
    upload = await alice.post("/v1/uploads", wanted())
    assert await put(upload["upload_url"], CONTENT[:-1] + b"x") == 400
    assert await put(upload["upload_url"], CONTENT) == 404
    assert (await bob.call("GET", f"/v1/attachments/{upload['attachment_id']}")).status == 404


async def test_an_address_works_for_as_long_as_it_says(start: Start) -> None:
    world = await start(attachment_life_s=0.0)
    alice, _ = world.peers("alice", "bob")
    upload = await alice.post("/v1/uploads", wanted())
    assert upload["expires_in"] == 0
    assert await put(upload["upload_url"], CONTENT) == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "text/html"},
        {"filename": ""},
        {"filename": "x" * 256},
        {"size": 0},
        {"size": 26_214_401},
        {"sha256": "ABC"},
        {"to": None},
        {"conversation_id": "conv_1"},
    ],
)
async def test_a_promise_that_the_platform_would_not_take_is_refused(world: World, changes: dict[str, Any]) -> None:
    alice, _ = world.peers("alice", "bob")
    reply = await alice.call("POST", "/v1/uploads", wanted(**changes))
    assert (reply.status, reply.json["code"]) == (400, "VALIDATION_ERROR")


async def test_a_file_may_be_larger_than_any_other_body(start: Start) -> None:
    world = await start(body_max_bytes=1_000, attachment_max_bytes=2_000)
    alice, _ = world.peers("alice", "bob")
    content = b"x" * 2_000
    upload = await alice.post("/v1/uploads", wanted(content))
    assert await put(upload["upload_url"], content) == 200
    assert (await alice.call("POST", "/v1/contacts", {"handle": "x" * 1_500})).status == 413
    assert await put(upload["upload_url"], b"x" * 2_001) == 413
