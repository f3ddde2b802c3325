"""The official SDK, unchanged, against a hub. Runs in its own virtual environment: it needs an older websockets.

usage: python sdk_session.py <http base> <ws base>
Writes one JSON object to stdout: what happened, step by step, for the test to judge. Answers are parsed with the SDK's
own models, so an answer that the SDK could not use ends the script.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

import httpx
from agentchatme import AgentChatClient, AsyncAgentChatClient, RealtimeClient
from agentchatme._client import CallOptions
from agentchatme.errors import (
    AgentChatError,
    AwaitingReplyError,
    GroupDeletedError,
    NotFoundError,
    RecipientBackloggedError,
    UnauthorizedError,
)
from agentchatme.types import (
    Agent,
    AgentProfile,
    Contact,
    ConversationListItem,
    CreateUploadResponse,
    GroupDetail,
    GroupInvitation,
    Message,
)

WAIT_S = 10.0


class Stream:
    """A RealtimeClient whose frames can be waited for."""

    def __init__(self, key: str, ws_base: str, client: AsyncAgentChatClient) -> None:
        self.messages: list[dict[str, Any]] = []
        self.closed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.errors: list[str] = []
        self._came = asyncio.Condition()
        self.connected = asyncio.Event()
        self.client = RealtimeClient(api_key=key, base_url=ws_base, client=client, reconnect_interval_ms=50)
        self.client.on("message.new", self._on_message)
        for type_ in ("message.read", "typing.start", "group.invite.received", "group.deleted", "presence.update"):
            self.client.on(type_, self.frames.put)
        self.client.on_connect(self.connected.set)
        self.client.on_disconnect(self.closed.put)
        self.client.on_error(lambda error: self.errors.append(str(error)))

    async def _on_message(self, frame: dict[str, Any]) -> None:
        async with self._came:
            self.messages.append(frame["payload"])
            self._came.notify_all()

    async def until(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(WAIT_S):
            async with self._came:
                await self._came.wait_for(lambda: len(self.messages) >= count)
        return self.messages

    async def frame(self, type_: str) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.frames.get()
                if frame["type"] == type_:
                    return frame["payload"]


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [m["content"]["text"] for m in messages if "text" in m["content"]]


def register(base: str, handle: str) -> tuple[Agent, str]:
    pending = AgentChatClient.register(email=f"{handle}@example.com", handle=handle, base_url=base)
    agent, key, client = AgentChatClient.verify(pending["pending_id"], pending["code"], base_url=base)
    client.close()
    return Agent.model_validate(agent), key


async def session(base: str, ws_base: str) -> dict[str, Any]:
    report: dict[str, Any] = {}
    alice_account, alice_key = register(base, "alice")
    _, bob_key = register(base, "bob")
    alice = AsyncAgentChatClient(api_key=alice_key, base_url=base)
    bob = AsyncAgentChatClient(api_key=bob_key, base_url=base)
    report["registered"] = [alice_account.handle, Agent.model_validate(await bob.get_me()).handle]
    AgentProfile.model_validate(await alice.get_agent("@bob"))

    first = await bob.send_message(to="@alice", text="one", client_msg_id="bob-1")
    Message.model_validate(first.message)
    conversation = first.message["conversation_id"]
    try:
        await bob.send_message(to="alice", text="too early")
    except AwaitingReplyError as error:
        report["awaiting_reply"] = [error.recipient_handle, error.waiting_since is not None]
    again = await bob.send_message(to="alice", text="changed", client_msg_id="bob-1")
    report["replayed"] = again.message["id"] == first.message["id"]
    await alice.send_message(to="bob", text="reply")
    for number in range(2, 6):
        await bob.send_message(to="alice", text=str(number))

    stream = Stream(alice_key, ws_base, alice)
    await stream.client.connect()
    await stream.until(5)
    await bob.send_message(to="alice", text="live", metadata={"reply_to": "x"})
    await stream.until(6)
    report["streamed"] = texts(stream.messages)
    report["seqs"] = [m["seq"] for m in stream.messages]

    # The socket's ack travels beside REST: read your own sync until the server has taken it.
    async with asyncio.timeout(WAIT_S):
        while await alice.sync():
            await asyncio.sleep(0.01)
    report["undelivered_after_ack"] = len(await alice.sync())

    rows = await bob.sync()
    report["bob_sync"] = texts(rows)
    acked = await bob.sync_ack(rows[-1]["delivery_id"])
    report["bob_acked"] = [acked["acked"], (await bob.sync_ack(rows[-1]["delivery_id"]))["acked"]]

    history = await alice.get_messages(conversation, after_seq=2)
    for row in history:
        Message.model_validate(row)
    report["history_after"] = [row["seq"] for row in history]
    report["history_before"] = [row["seq"] for row in await alice.get_messages(conversation, before_seq=4)]

    bob_stream = Stream(bob_key, ws_base, bob)
    await bob_stream.client.connect()
    await asyncio.wait_for(bob_stream.connected.wait(), WAIT_S)
    await alice.mark_as_read(stream.messages[-1]["id"])
    report["read"] = (await bob_stream.frame("message.read"))["through_seq"]
    await stream.client.send({"type": "typing.start", "payload": {"conversation_id": conversation}})
    report["typing"] = (await bob_stream.frame("typing.start"))["sender"]

    listed = [ConversationListItem.model_validate(row) for row in await alice.list_conversations()]
    report["conversations"] = [[row.id == conversation, row.participants[0].handle] for row in listed]
    await bob.add_contact("alice")
    contacts = await bob.list_contacts()
    report["contacts"] = [Contact.model_validate(row).handle for row in contacts["contacts"]]
    await alice.update_presence({"status": "busy", "custom_message": "thinking"})
    report["presence_frame"] = (await bob_stream.frame("presence.update"))["status"]
    report["presence"] = (await bob.get_presence("alice"))["custom_message"]
    report["directory"] = [row["handle"] for row in (await alice.search_agents("bo"))["agents"]]
    await alice.mute_agent("bob")
    report["muted"] = (await alice.list_mutes())["mutes"][0]["target_id"]
    await alice.unmute_agent("bob")
    report["mute_status"] = await alice.get_agent_mute_status("bob")

    report["attachment"] = await attachment(base, alice, bob)
    report["once"] = await once(alice)
    report["group"] = await group(alice, bob, stream, bob_stream)

    for name, call in {
        "unknown_agent": alice.get_agent("nobody-here"),
        "unknown_conversation": alice.get_messages("conv_nothing"),
    }.items():
        try:
            await call
        except NotFoundError as error:
            report[name] = error.code
    try:
        await alice.send_message(to="bob", text="x" * 40_000)
    except AgentChatError as error:
        report["too_large"] = [error.status, error.code, error.request_id is not None]

    pending = await alice.rotate_key("alice")
    rotated = await alice.rotate_key_verify("alice", pending["pending_id"], pending["code"])
    closed = await asyncio.wait_for(stream.closed.get(), WAIT_S)
    report["rotated"] = [rotated["handle"], closed["code"], "auth-terminal" in stream.errors[-1]]
    try:
        await alice.get_me()
    except UnauthorizedError as error:
        report["old_key"] = error.status
    report["errors_before_rotation"] = stream.errors[:-1]

    await stream.client.disconnect()
    await bob_stream.client.disconnect()
    await alice.aclose()
    await bob.aclose()
    return report


async def attachment(base: str, alice: AsyncAgentChatClient, bob: AsyncAgentChatClient) -> list[Any]:
    content = b"hello, file"
    asked = {"filename": "a.txt", "content_type": "text/plain", "size": len(content), "to": "bob"}
    upload = CreateUploadResponse.model_validate(
        await alice.create_upload({**asked, "sha256": hashlib.sha256(content).hexdigest()})
    )
    async with httpx.AsyncClient() as anybody:
        put = await anybody.put(upload.upload_url, content=content)
        await alice.send_message(to="bob", attachment_id=upload.attachment_id, type="file", client_msg_id="file-1")
        got = await anybody.get(await bob.get_attachment_download_url(upload.attachment_id))
    return [put.status_code, got.text, got.headers["content-type"].split(";")[0]]


async def once(alice: AsyncAgentChatClient) -> list[Any]:
    """Notes under one key: the second call is given the first one's answer, another one is refused."""
    opts = CallOptions(idempotency_key="sdk-once-1")
    await alice.add_contact("bob")
    first = await alice.update_contact_notes("bob", "first", opts)
    await alice.update_contact_notes("bob", "second")
    again = await alice.update_contact_notes("bob", "first", opts)
    kept = (await alice.check_contact("bob"))["notes"]
    try:
        await alice.update_contact_notes("bob", "third", opts)
    except AgentChatError as error:
        return [first == again, kept, error.status, error.code]
    return [first == again, kept]


async def group(
    alice: AsyncAgentChatClient, bob: AsyncAgentChatClient, stream: Stream, bob_stream: Stream
) -> dict[str, Any]:
    report: dict[str, Any] = {}
    created = await alice.create_group({"name": "Ants", "member_handles": ["bob"]})
    group_id = created["group"]["id"]
    report["invited"] = [result["outcome"] for result in created["add_results"]]
    invitation = GroupInvitation.model_validate(await bob_stream.frame("group.invite.received"))
    report["invites"] = [row["id"] == invitation.id for row in await bob.list_group_invites()]
    detail = GroupDetail.model_validate(await bob.accept_group_invite(invitation.id))
    report["members"] = [[member.handle, member.role] for member in detail.members]
    before = len(bob_stream.messages)
    await alice.send_message(conversation_id=group_id, text="hello @bob")
    messages = await bob_stream.until(before + 1)
    mine = [m for m in messages if m["conversation_id"] == group_id]
    report["bob_saw"] = [[m["type"], m["seq"]] for m in mine]
    report["mentions"] = mine[-1]["context"]["mentions"]
    await alice.delete_group(group_id)
    report["deleted_frame"] = (await bob_stream.frame("group.deleted"))["group_id"] == group_id
    try:
        await bob.get_group(group_id)
    except GroupDeletedError as error:
        report["gone"] = error.deleted_by_handle
    return report


async def backlog(base: str, sender_key: str) -> dict[str, Any]:
    warnings: list[list[Any]] = []
    refused: list[Any] = []
    async with AsyncAgentChatClient(
        api_key=sender_key,
        base_url=base,
        on_backlog_warning=lambda w: warnings.append([w.recipient_handle, w.undelivered_count]),
    ) as client:
        try:
            for number in range(10):
                await client.send_message(to="sleeper", text=str(number))
        except RecipientBackloggedError as error:
            refused = [error.recipient_handle, error.undelivered_count]
    return {"warnings": warnings, "refused": refused}


def main() -> None:
    what, base, *rest = sys.argv[1:]
    report = asyncio.run(session(base, *rest) if what == "session" else backlog(base, *rest))
    print(json.dumps(report))


main()
