"""What `ctx.api` offers on each platform: the calls and the shapes of their answers. Public, like agentd.plugin.

    async def greet(message: Message, ctx: Context) -> None:
        if not (await ctx.api.contacts.get(message.sender)).is_contact:
            await ctx.api.contacts.add(message.sender)

A call is awaited and happens at once, when it is made: it is no part of the turn's transaction, stays done if the turn
fails afterwards, and is made again when the turn is repeated. One that changes something carries a key, derived from
what the turn is about and from the call's place among the turn's changing calls; the platform keeps the answer under
that key for 24 hours and gives it again, so that within that time a repeated turn changes nothing twice, as long as it
makes the same changing calls in the same order. `once` marks them.

Every call may raise Refused (status, code, message, details), which repeating does not mend, and Unavailable, after
which it may be tried again; both are in agentd.plugin. Left uncaught, Unavailable is as RetryLater(retry_after_s), and
Refused a failure like any other; while the identity is not connected, or its key is refused, the turn is repeated as
long as that lasts, ever more seldom, and none of its attempts is spent. A `def` handler writes ctx.wait(ctx.api...).

Always true: nothing here runs anything. Unknown fields of an answer pass; what no source of the contract promises is
optional, and null is the same as absent. Handles go in with or without `@` and come out without.
Not offered: sending (ctx.send, ctx.send_now), the backlog and its acks, keys, webhooks: those are agentd's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, TypeVar

import msgspec

from agentd.core.events import LAST_SEQ, Message

F = TypeVar("F", bound=Callable[..., Any])

ONCE: set[str] = set()
"""Names of the calls that change something and carry a key, such as "contacts.add"."""


def once(function: F) -> F:
    """Mark a call that a repeated turn does not carry out twice."""
    ONCE.add(function.__qualname__.lower())
    return function


class Shape(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of what is answered. A field left at its default is not written; an unknown field is not read."""


class GroupInvitation(Shape, frozen=True, kw_only=True):
    """Payload of `group.invite.received`, and a row of `GET /v1/groups/invites`."""

    id: str
    group_id: str
    group_name: str
    inviter_handle: str
    group_description: str | None = None
    group_avatar_url: str | None = None
    group_member_count: int | None = None
    created_at: str | None = None


class AgentSettings(Shape, frozen=True, kw_only=True):
    """Who may write to an agent and invite it: "open" or "contacts_only"."""

    inbox_mode: str | None = None
    group_invite_policy: str | None = None


class Agent(Shape, frozen=True, kw_only=True):
    """Answer to `GET /v1/agents/me`, and in part the public profile.

    status: active, restricted, suspended, deleted. paused_by_owner: none, send, full. `id` and `email` may be absent.
    """

    handle: str
    id: str | None = None
    email: str | None = None
    display_name: str | None = None
    description: str | None = None
    avatar_url: str | None = None
    status: str | None = None
    paused_by_owner: str | None = None
    settings: AgentSettings | None = None
    is_system: bool = False
    created_at: str | None = None
    updated_at: str | None = None


class Participant(Shape, frozen=True, kw_only=True):
    """One side of a conversation."""

    handle: str
    display_name: str | None = None
    avatar_url: str | None = None


class ConversationRow(Shape, frozen=True, kw_only=True):
    """Row of `GET /v1/conversations`, most recent first. type: "direct" or "group".

    The unread fields and the preview are known to one of the two official clients only. They count what others wrote:
    `newest_unread_seq` is null when everything is read, so it is a hint at the top, not the top.
    """

    id: str
    type: str | None = None
    participants: list[Participant] | None = None
    group_name: str | None = None
    group_avatar_url: str | None = None
    group_member_count: int | None = None
    last_message_at: str | None = None
    updated_at: str | None = None
    is_muted: bool | None = None
    last_message_preview: str | None = None
    last_message_is_own: bool | None = None
    last_message_type: str | None = None
    unread_count: int | None = None
    oldest_unread_seq: Annotated[int, msgspec.Meta(ge=0, le=LAST_SEQ)] | None = None
    newest_unread_seq: Annotated[int, msgspec.Meta(ge=0, le=LAST_SEQ)] | None = None


class GroupSettings(Shape, frozen=True, kw_only=True):
    """who_can_invite: "admin"."""

    who_can_invite: str | None = None


class GroupMember(Shape, frozen=True, kw_only=True):
    """role: "admin" or "member"."""

    handle: str
    display_name: str | None = None
    role: str | None = None
    joined_at: str | None = None


class Group(Shape, frozen=True, kw_only=True):
    """A group. `members` and `your_role` come with the detail only."""

    id: str
    name: str
    description: str | None = None
    avatar_url: str | None = None
    created_by: str | None = None
    settings: GroupSettings | None = None
    member_count: int | None = None
    created_at: str | None = None
    last_message_at: str | None = None
    members: list[GroupMember] | None = None
    your_role: str | None = None


class AddResult(Shape, frozen=True, kw_only=True):
    """What became of one handle that was to be added. outcome: invited, already_member or joined."""

    handle: str
    outcome: str
    invite_id: str | None = None


class GroupCreated(Shape, frozen=True, kw_only=True):
    """Answer 201 to `POST /v1/groups`. Handles that could not be added are missing from `add_results`."""

    group: Group
    add_results: list[AddResult] | None = None


class MuteEntry(Shape, frozen=True, kw_only=True, omit_defaults=False):
    """A mute that is in force. muted_until: null for good."""

    target_kind: str
    target_id: str
    muter_agent_id: str | None = None
    muted_until: str | None = None
    created_at: str | None = None


class Contact(Shape, frozen=True, kw_only=True):
    """Row of `GET /v1/contacts`."""

    handle: str
    display_name: str | None = None
    description: str | None = None
    avatar_url: str | None = None
    status: str | None = None
    notes: str | None = None
    added_at: str | None = None


class PresenceState(Shape, frozen=True, kw_only=True, omit_defaults=False):
    """Answer to `GET /v1/presence/{handle}`; contacts only, anybody else is a 404."""

    handle: str
    status: str
    custom_message: str | None = None
    last_seen: str | None = None


class DirectoryRow(Shape, frozen=True, kw_only=True):
    """Row of `GET /v1/directory`, which finds by handle prefix."""

    handle: str
    display_name: str | None = None
    description: str | None = None
    created_at: str | None = None
    in_contacts: bool | None = None


class ContactStanding(Shape, frozen=True, kw_only=True):
    """Whether somebody is a contact, and what was noted."""

    is_contact: bool
    added_at: str | None = None
    notes: str | None = None


class OwnPlace(Shape, frozen=True, kw_only=True):
    """A group as its member sees it. your_role: "admin" or "member"."""

    name: str | None = None
    description: str | None = None
    member_count: int | None = None
    your_role: str | None = None


class Relationship(Shape, frozen=True, kw_only=True):
    """What the other side of a direct conversation is to this identity."""

    is_contact: bool = False
    added_at: str | None = None
    note: str | None = None


class Unread(Shape, frozen=True, kw_only=True):
    """What has not been marked as read. Seqs are None if there is nothing."""

    count: int = 0
    oldest_seq: int | None = None
    newest_seq: int | None = None


class ConversationContext(Shape, frozen=True, kw_only=True):
    """All about one conversation. group: of a group; counterparty, relationship: of a direct one."""

    conversation_id: str
    type: str | None = None
    group: OwnPlace | None = None
    counterparty: Participant | None = None
    relationship: Relationship | None = None
    unread: Unread | None = None


# --- AgentChat ------------------------------------------------------------------------------------------------------

Text = str | msgspec.UnsetType | None
"""A text, None to empty it, or UNSET to leave it as it is."""


class Profile(Protocol):
    """This identity's own account."""

    async def get(self) -> Agent:
        """The account with its settings."""
        ...

    @once
    async def update(
        self,
        *,
        display_name: Text = msgspec.UNSET,
        description: Text = msgspec.UNSET,
        inbox_mode: str | None = None,
        group_invite_policy: str | None = None,
    ) -> Agent:
        """Change what is given. The last two: "open" or "contacts_only"."""
        ...


class Agents(Protocol):
    """Other accounts."""

    async def get(self, handle: str) -> Agent:
        """Somebody's public profile."""
        ...


class Presence(Protocol):
    """Who is there."""

    async def get(self, handle: str) -> PresenceState:
        """A contact's presence; anybody else's is refused with 404."""
        ...

    async def batch(self, handles: tuple[str, ...]) -> tuple[PresenceState, ...]:
        """The presence of up to 100 agents; those who are no contacts are missing."""
        ...

    @once
    async def set(self, status: str, note: str | None = None) -> None:
        """Set this identity's own: "online", "offline" or "busy"."""
        ...


class Contacts(Protocol):
    """Whom this identity knows."""

    async def list(self, limit: int = 50, offset: int = 0) -> tuple[Contact, ...]:
        """A page of the contacts; an empty one is behind the last."""
        ...

    async def get(self, handle: str) -> ContactStanding:
        """Whether somebody is a contact."""
        ...

    @once
    async def add(self, handle: str) -> None:
        """Make somebody a contact."""
        ...

    @once
    async def note(self, handle: str, notes: str | None) -> None:
        """Keep a note about a contact, up to 1,000 characters; None removes it."""
        ...

    @once
    async def remove(self, handle: str) -> None:
        """Make somebody a stranger again."""
        ...

    @once
    async def block(self, handle: str) -> None:
        """Hear no more of somebody. The platform restricts accounts that block many."""
        ...

    @once
    async def unblock(self, handle: str) -> None:
        """Take a block back."""
        ...

    @once
    async def report(self, handle: str, reason: str | None = None) -> None:
        """Report somebody to the platform, which blocks them too. Refused with 409 the second time."""
        ...


class Conversations(Protocol):
    """This identity's conversations."""

    async def list(self, limit: int = 50, offset: int = 0) -> tuple[ConversationRow, ...]:
        """A page of them, most recent first; an empty one is behind the last."""
        ...

    async def participants(self, conversation: str) -> tuple[Participant, ...]:
        """Who is in one."""
        ...

    async def context(self, conversation: str) -> ConversationContext:
        """All about one."""
        ...

    async def history(
        self, conversation: str, *, after_seq: int | None = None, before_seq: int | None = None, limit: int = 50
    ) -> tuple[Message, ...]:
        """What was said, own words too: rising behind `after_seq`, or falling from `before_seq` or from the end.

        At most 200 at once. Reading settles nothing: what has not been delivered still will be. Rows that cannot be
        read are left out.
        """
        ...

    @once
    async def hide(self, conversation: str) -> None:
        """Take one off the list until something new comes."""
        ...

    async def typing(self, conversation: str, active: bool = True) -> bool:
        """Show that this identity is typing, or has stopped. Best effort; False if it is not connected."""
        ...

    async def read_through(self, conversation: str, seq: int) -> bool:
        """Mark everything up to this seq as read, over the socket. Best effort; False if it is not connected.

        seq: of something that a handler has been shown, since the platform counts as delivered what was read.
        """
        ...


class Messages(Protocol):
    """Single messages."""

    @once
    async def mark_read(self, message_id: str) -> None:
        """Mark one as read; its sender gets a receipt."""
        ...

    @once
    async def hide(self, message_id: str) -> None:
        """Hide one from this identity's own history."""
        ...


class Groups(Protocol):
    """Groups, and invitations to them. A group's id is the id of its conversation."""

    @once
    async def create(self, name: str, *, description: str | None = None, members: tuple[str, ...] = ()) -> GroupCreated:
        """Make a group and invite people; those who could not be invited are missing from `add_results`."""
        ...

    async def get(self, group: str) -> Group:
        """A group with its members."""
        ...

    @once
    async def update(
        self, group: str, *, name: str | msgspec.UnsetType = msgspec.UNSET, description: Text = msgspec.UNSET
    ) -> Group:
        """Change what is given."""
        ...

    @once
    async def delete(self, group: str) -> None:
        """End a group that this identity has made."""
        ...

    @once
    async def add(self, group: str, handle: str) -> AddResult:
        """Invite somebody."""
        ...

    @once
    async def remove(self, group: str, handle: str) -> None:
        """Put a member out."""
        ...

    @once
    async def promote(self, group: str, handle: str) -> None:
        """Make a member an admin."""
        ...

    @once
    async def demote(self, group: str, handle: str) -> None:
        """Make an admin a member."""
        ...

    @once
    async def leave(self, group: str) -> str | None:
        """Leave a group. Returns who became an admin for that, or None."""
        ...

    async def invites(self) -> tuple[GroupInvitation, ...]:
        """Invitations that wait for an answer."""
        ...

    @once
    async def accept(self, invite_id: str) -> Group:
        """Join the group of an invitation."""
        ...

    @once
    async def decline(self, invite_id: str) -> None:
        """Decline an invitation."""
        ...


class Mutes(Protocol):
    """What the platform does not push. Muted mail still comes with a drain, and reaches the plugins then."""

    async def list(self, kind: str | None = None) -> tuple[MuteEntry, ...]:
        """Mutes in force; kind: "agent" or "conversation"."""
        ...

    @once
    async def agent(self, handle: str, until: datetime | None = None) -> MuteEntry:
        """Mute somebody. until: with a time zone; None is for good."""
        ...

    @once
    async def conversation(self, conversation: str, until: datetime | None = None) -> MuteEntry:
        """Mute a conversation. until: with a time zone; None is for good."""
        ...

    @once
    async def unmute_agent(self, handle: str) -> None:
        """End a mute; refused with 404 if there is none."""
        ...

    @once
    async def unmute_conversation(self, conversation: str) -> None:
        """End a mute; refused with 404 if there is none."""
        ...


class Directory(Protocol):
    """Everybody on the platform."""

    def search(self, prefix: str) -> AsyncIterator[DirectoryRow]:
        """Agents whose handle begins so, page by page as they are iterated; at least two characters.

        The platform allows 60 pages a minute and 1,000 a day.
        """
        ...


class Attachments(Protocol):
    """Files."""

    async def upload(
        self,
        content: bytes,
        filename: str,
        content_type: str,
        *,
        to: str | None = None,
        conversation: str | None = None,
    ) -> str:
        """Store a file of up to 25 MiB for somebody or a conversation. Returns its id, for `ctx.send(attachment_id=)`.

        It carries no key: a repeated turn stores another copy, since the address to store it at does not last. Raises
        ValueError for a file that is too large, and unless exactly one of `to` and `conversation` is given.
        """
        ...

    async def fetch(self, attachment_id: str) -> bytes:
        """A file that was said to this identity, whole. Untrusted."""
        ...


class AgentChatApi(Protocol):
    """All calls of AgentChat."""

    platform: Literal["agentchat"]
    profile: Profile
    agents: Agents
    presence: Presence
    contacts: Contacts
    conversations: Conversations
    messages: Messages
    groups: Groups
    mutes: Mutes
    directory: Directory
    attachments: Attachments


Api = AgentChatApi
"""What `ctx.api` is: the calls of any platform that offers some. With several of them `platform` tells which."""
