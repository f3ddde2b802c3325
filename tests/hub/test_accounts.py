"""Registration, recovery and keys, over the API."""

from __future__ import annotations

from typing import Any

import pytest


async def register(world: Any, handle: str, email: str = "a@example.com") -> Any:
    nobody = world.with_key("")
    pending = await nobody.post("/v1/register", {"email": email, "handle": handle})
    return await nobody.post("/v1/register/verify", {"pending_id": pending["pending_id"], "code": pending["code"]})


async def test_a_mailed_code_makes_an_agent_and_shows_its_key_once(world: Any) -> None:
    made = await register(world, "alice")
    me = await world.with_key(made["api_key"]).get("/v1/agents/me")
    assert me["handle"] == "alice"
    assert me["email"] == "a***@example.com"
    assert "api_key" not in me
    assert made["api_key"] not in str(world.hub.service.database.rows("SELECT * FROM agent"))


async def test_outside_development_the_code_is_not_told(start: Any) -> None:
    world = await start(development=False)
    nobody = world.with_key("")
    pending = await nobody.post("/v1/register", {"email": "a@example.com", "handle": "alice"})
    assert "code" not in pending
    assert (await nobody.call("POST", "/hub/v1/agents", {"handle": "eve"})).status == 404


async def test_a_wrong_code_can_be_tried_five_times(world: Any) -> None:
    nobody = world.with_key("")
    pending = await nobody.post("/v1/register", {"email": "a@example.com", "handle": "alice"})
    wrong = {"pending_id": pending["pending_id"], "code": "wrong"}
    codes = [(await nobody.call("POST", "/v1/register/verify", wrong)).json["code"] for _ in range(6)]
    assert codes == ["INVALID_CODE"] * 5 + ["PENDING_NOT_FOUND"]


async def test_a_code_expires(start: Any) -> None:
    world = await start(otp_life_s=0.0)
    nobody = world.with_key("")
    pending = await nobody.post("/v1/register", {"email": "a@example.com", "handle": "alice"})
    verify = {"pending_id": pending["pending_id"], "code": pending["code"]}
    assert (await nobody.call("POST", "/v1/register/verify", verify)).json["code"] == "EXPIRED"


@pytest.mark.parametrize("handle", ["al", "a" * 31, "Alice", "-alice", "alice-", "a--b", "1abc", "al ice"])
async def test_a_bad_handle_is_refused(world: Any, handle: str) -> None:
    reply = await world.with_key("").call("POST", "/v1/register", {"email": "a@example.com", "handle": handle})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_HANDLE")


async def test_a_taken_handle_is_refused_even_after_deletion(world: Any) -> None:
    made = await register(world, "alice")
    await world.with_key(made["api_key"]).call("DELETE", "/v1/agents/alice")
    assert (await world.with_key("").call("GET", "/v1/agents/alice")).status == 404
    reply = await world.with_key("").call("POST", "/v1/register", {"email": "b@example.com", "handle": "alice"})
    assert (reply.status, reply.json["code"]) == (409, "HANDLE_TAKEN")


async def test_a_mail_address_backs_ten_agents(world: Any) -> None:
    for number in range(10):
        await register(world, f"agent{number}")
    reply = await world.with_key("").call("POST", "/v1/register", {"email": "a@example.com", "handle": "eleventh"})
    assert (reply.status, reply.json["code"], reply.json["details"]) == (409, "EMAIL_LIMIT_REACHED", {"limit": 10})


async def test_recovery_gives_a_new_key_and_closes_the_sockets_of_the_old(world: Any) -> None:
    made = await register(world, "alice")
    old, nobody = world.with_key(made["api_key"]), world.with_key("")
    socket = await old.socket()
    pending = await nobody.post("/v1/agents/recover", {"email": "a@example.com"})
    verify = {"pending_id": pending["pending_id"], "code": pending["code"]}
    new = await nobody.post("/v1/agents/recover/verify", verify)
    assert (await socket.closed())[0] == 1008
    assert (await old.call("GET", "/v1/agents/me")).status == 401
    assert (await world.with_key(new["api_key"]).get("/v1/agents/me"))["handle"] == "alice"


async def test_recovery_asks_for_the_handle_where_there_are_several(world: Any) -> None:
    await register(world, "alice")
    await register(world, "alina")
    nobody = world.with_key("")
    pending = await nobody.post("/v1/agents/recover", {"email": "a@example.com"})
    verify = {"pending_id": pending["pending_id"], "code": pending["code"]}
    reply = await nobody.call("POST", "/v1/agents/recover/verify", verify)
    assert (reply.status, reply.json["code"]) == (409, "HANDLE_REQUIRED")
    assert reply.json["details"] == {"handles": ["alice", "alina"]}


async def test_recovery_of_nobody_begins_like_any_other_and_then_fails(world: Any) -> None:
    nobody = world.with_key("")
    pending = await nobody.post("/v1/agents/recover", {"email": "nobody@example.com"})
    verify = {"pending_id": pending["pending_id"], "code": pending["code"]}
    reply = await nobody.call("POST", "/v1/agents/recover/verify", verify)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_CODE")


async def test_only_the_agent_itself_changes_its_profile_and_key(world: Any) -> None:
    alice, _ = world.peers("alice", "bob")
    assert (await alice.call("PATCH", "/v1/agents/bob", {"display_name": "B"})).status == 403
    assert (await alice.call("POST", "/v1/agents/bob/rotate-key")).status == 403
    changed = await alice.call("PATCH", "/v1/agents/@alice", {"display_name": "Alice", "description": None})
    assert changed.json["display_name"] == "Alice"
    assert (await world.with_key("").get("/v1/agents/alice"))["display_name"] == "Alice"
