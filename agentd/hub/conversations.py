"""Conversations and who belongs to them: direct ones, groups, memberships, invitations.

All of them are in memory, written through to the database; a conversation's last seq follows from its messages.

Always true: two agents share one direct conversation; a group keeps an admin as long as anybody is in it.
Not here: the messages (mailbox.py), and telling anybody (groups.py).
"""

from __future__ import annotations

import dataclasses

from agentd.hub.accounts import Account, Accounts
from agentd.hub.answers import ApiError, not_found
from agentd.hub.clock import instant, unix_s
from agentd.hub.database import Database
from agentd.hub.ids import Ids
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """One agent in one conversation. joined_seq: the first seq that it may see. present: has not left."""

    role: str
    joined_at: str
    joined_seq: int
    present: bool = True
    read_seq: int = 0
    hidden_seq: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Conversation:
    """One conversation. members: by agent number, those who left included. last_seq: 0 while it is empty.

    opened_by: who wrote first, or created the group. established: another has written too.
    """

    number: int
    id: str
    direct: bool
    opened_by: int
    opened_at_s: float
    established: bool
    name: str | None
    description: str | None
    avatar_url: str | None
    created_at: str
    deleted_at: str | None = None
    deleted_by: str | None = None
    members: dict[int, Member] = dataclasses.field(default_factory=dict)
    last_seq: int = 0
    last_message_at: str | None = None

    def present(self) -> list[int]:
        """Numbers of those who are in it now."""
        return [agent for agent, member in self.members.items() if member.present]

    def others(self, agent: int) -> list[int]:
        """The same without one."""
        return [number for number, member in self.members.items() if member.present and number != agent]

    def peer(self, agent: int) -> int:
        """The other side of a direct conversation."""
        return next(number for number in self.members if number != agent)


@dataclasses.dataclass(slots=True)
class Invite:
    """A pending invitation to a group."""

    number: int
    conversation: int
    agent: int
    inviter: int
    created_at: str


class Conversations:
    """Every conversation of the hub."""

    def __init__(self, database: Database, accounts: Accounts) -> None:
        self._database = database
        self._accounts = accounts
        self._direct_ids = Ids("conv_", database.tag)
        self._group_ids = Ids(wire.GROUP_ID_PREFIX, database.tag)
        self.invite_ids = Ids("gri_", database.tag)
        self._by_number: dict[int, Conversation] = {}
        self._by_pair: dict[str, Conversation] = {}
        self._of_agent: dict[int, dict[int, Conversation]] = {}
        self._invites: dict[int, Invite] = {}
        self._load()

    # --- finding ---

    def by_number(self, number: int) -> Conversation:
        """The conversation with this number, which exists."""
        return self._by_number[number]

    def find(self, id_: str) -> Conversation | None:
        """The conversation of this id, or None."""
        ids = self._group_ids if id_.startswith(wire.GROUP_ID_PREFIX) else self._direct_ids
        number = ids.number_of(id_)
        return None if number is None else self._by_number.get(number)

    def of(self, account: Account, id_: str) -> Conversation:
        """A conversation that this agent is in. Raises ApiError 404 for any other, 410 for its deleted group."""
        conversation = self.find(id_)
        member = None if conversation is None else conversation.members.get(account.number)
        if conversation is None or member is None:
            raise not_found(ErrorCode.CONVERSATION_NOT_FOUND, "No such conversation")
        if conversation.deleted_at is not None:
            raise ApiError(410, ErrorCode.GROUP_DELETED, "This group was deleted", tombstone(conversation))
        if not member.present:
            raise not_found(ErrorCode.CONVERSATION_NOT_FOUND, "No such conversation")
        return conversation

    def group_of(self, account: Account, id_: str) -> Conversation:
        """A group that this agent is in; raises like `of`."""
        conversation = self.of(account, id_)
        if conversation.direct:
            raise not_found(ErrorCode.CONVERSATION_NOT_FOUND, "No such group")
        return conversation

    def between(self, one: Account, other: Account) -> Conversation | None:
        """The direct conversation of two agents, if they have one."""
        return self._by_pair.get(_pair(one.number, other.number))

    def listed(self, account: Account) -> list[Conversation]:
        """An agent's conversations, the one with the latest message first, without hidden, left and deleted ones."""
        mine = [
            conversation
            for conversation in self._of_agent.get(account.number, {}).values()
            if _is_listed(conversation, conversation.members[account.number])
        ]
        return sorted(mine, key=lambda c: (c.last_message_at or c.created_at, c.number), reverse=True)

    # --- making and changing ---

    def open_direct(self, opener: Account, other: Account) -> Conversation:
        """The direct conversation of two agents, made if need be."""
        found = self.between(opener, other)
        if found is not None:
            return found
        conversation = self._insert(direct=True, opener=opener, pair=_pair(opener.number, other.number))
        for account in (opener, other):
            self._join(conversation, account, role="member", joined_seq=1)
        return conversation

    def create_group(self, creator: Account, request: wire.CreateGroupRequest) -> Conversation:
        """A new group with its creator as the one admin."""
        conversation = self._insert(
            direct=False,
            opener=creator,
            name=request.name,
            description=request.description,
            avatar_url=request.avatar_url,
        )
        self._join(conversation, creator, role="admin", joined_seq=1)
        return conversation

    def change_group(self, group: Conversation, **columns: str | None) -> None:
        """Set columns of a group, in memory and on disk."""
        assignments = ", ".join(f"{name} = ?" for name in columns)
        sql = f"UPDATE conversation SET {assignments} WHERE number = ?"  # noqa: S608 -- names of columns, our code
        self._database.write(sql, [*columns.values(), group.number])
        for name, value in columns.items():
            setattr(group, name, value)

    def establish(self, conversation: Conversation) -> None:
        """Note that the one who was written to has written back."""
        conversation.established = True
        self._database.write("UPDATE conversation SET established = 1 WHERE number = ?", (conversation.number,))

    def join(self, group: Conversation, account: Account) -> None:
        """Let an agent into a group. It sees what comes from now on, the note that it joined included."""
        self._join(group, account, role="member", joined_seq=group.last_seq + 1)

    def leave(self, group: Conversation, account: Account) -> int | None:
        """Let an agent out of a group. Returns the number of a member made admin in its place, or None."""
        self.change_member(group, account.number, present=False)
        present = group.present()
        if not present or any(group.members[number].role == "admin" for number in present):
            return None
        self.change_member(group, present[0], role="admin")
        return present[0]

    def change_member(
        self,
        conversation: Conversation,
        agent: int,
        *,
        role: str | None = None,
        present: bool | None = None,
        read_seq: int | None = None,
        hidden_seq: int | None = None,
    ) -> None:
        """Change one membership. What is None stays."""
        member = conversation.members[agent]
        member.role = member.role if role is None else role
        member.present = member.present if present is None else present
        member.read_seq = member.read_seq if read_seq is None else read_seq
        member.hidden_seq = member.hidden_seq if hidden_seq is None else hidden_seq
        self._write_member(conversation, agent, member)

    def cold_threads(self, account: Account, since_s: float) -> int:
        """How many conversations this agent has opened since then that nobody has answered."""
        return sum(
            conversation.opened_by == account.number
            and not conversation.established
            and conversation.opened_at_s >= since_s
            for conversation in self._of_agent.get(account.number, {}).values()
            if conversation.direct
        )

    # --- invitations ---

    def invite(self, group: Conversation, account: Account, inviter: Account) -> tuple[Invite, bool]:
        """Invite an agent, once. Returns the invitation and whether it is new."""
        for invite in self._invites.values():
            if (invite.conversation, invite.agent) == (group.number, account.number):
                return invite, False
        invite = Invite(max(self._invites, default=0) + 1, group.number, account.number, inviter.number, instant())
        self._database.write(
            "INSERT INTO invite (number, conversation, agent, inviter, created_at) VALUES (?, ?, ?, ?, ?)",
            dataclasses.astuple(invite),
        )
        self._invites[invite.number] = invite
        return invite, True

    def invites_of(self, account: Account) -> list[Invite]:
        """An agent's pending invitations to groups that still exist."""
        return [
            invite
            for invite in self._invites.values()
            if invite.agent == account.number and self._by_number[invite.conversation].deleted_at is None
        ]

    def take_invite(self, account: Account, id_: str) -> Invite:
        """Remove and return one of an agent's invitations. Raises ApiError 404."""
        number = self.invite_ids.number_of(id_)
        invite = None if number is None else self._invites.get(number)
        if invite is None or invite not in self.invites_of(account):
            raise not_found(ErrorCode.NOT_FOUND, "No such invitation")
        del self._invites[invite.number]
        self._database.write("DELETE FROM invite WHERE number = ?", (invite.number,))
        return invite

    def invitation(self, invite: Invite) -> wire.GroupInvitation:
        """An invitation as the wire has it."""
        group = self._by_number[invite.conversation]
        return wire.GroupInvitation(
            id=self.invite_ids.make(invite.number),
            group_id=group.id,
            group_name=group.name or "",
            group_description=group.description,
            group_avatar_url=group.avatar_url,
            group_member_count=len(group.present()),
            inviter_handle=self._accounts.by_number(invite.inviter).handle,
            created_at=invite.created_at,
        )

    # --- inside ---

    def _load(self) -> None:
        for row in self._database.rows(
            "SELECT number, kind, pair, opened_by, opened_at, established, name, description, avatar_url,"
            " created_at, deleted_at, deleted_by FROM conversation"
        ):
            number, kind, pair, opened_by, opened_at_s, established, *rest = row
            direct = kind == "direct"
            id_ = (self._direct_ids if direct else self._group_ids).make(number)
            conversation = Conversation(number, id_, direct, opened_by, opened_at_s, bool(established), *rest)
            self._by_number[number] = conversation
            if pair is not None:
                self._by_pair[pair] = conversation
        for (
            conversation_number,
            agent,
            role,
            joined_at,
            joined_seq,
            present,
            read_seq,
            hidden_seq,
        ) in self._database.rows(
            "SELECT conversation, agent, role, joined_at, joined_seq, present, read_seq, hidden_seq FROM member"
        ):
            conversation = self._by_number[conversation_number]
            conversation.members[agent] = Member(role, joined_at, joined_seq, bool(present), read_seq, hidden_seq)
            self._of_agent.setdefault(agent, {})[conversation_number] = conversation
        for number, last_seq, last_message_at in self._database.rows(
            "SELECT conversation, max(seq), max(created_at) FROM message GROUP BY conversation"
        ):
            self._by_number[number].last_seq = last_seq
            self._by_number[number].last_message_at = last_message_at
        for row in self._database.rows("SELECT number, conversation, agent, inviter, created_at FROM invite"):
            self._invites[row[0]] = Invite(*row)

    def _insert(
        self,
        *,
        direct: bool,
        opener: Account,
        pair: str | None = None,
        name: str | None = None,
        description: str | None = None,
        avatar_url: str | None = None,
    ) -> Conversation:
        number = max(self._by_number, default=0) + 1
        conversation = Conversation(
            number=number,
            id=(self._direct_ids if direct else self._group_ids).make(number),
            direct=direct,
            opened_by=opener.number,
            opened_at_s=unix_s(),
            established=not direct,
            name=name,
            description=description,
            avatar_url=avatar_url,
            created_at=instant(),
        )
        self._database.write(
            "INSERT INTO conversation (number, kind, pair, opened_by, opened_at, established, name, description,"
            " avatar_url, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                "direct" if direct else "group",
                pair,
                opener.number,
                conversation.opened_at_s,
                int(conversation.established),
                name,
                description,
                avatar_url,
                conversation.created_at,
            ),
        )
        self._by_number[number] = conversation
        if pair is not None:
            self._by_pair[pair] = conversation
        return conversation

    def _join(self, conversation: Conversation, account: Account, *, role: str, joined_seq: int) -> None:
        member = Member(role, instant(), joined_seq)
        conversation.members[account.number] = member
        self._of_agent.setdefault(account.number, {})[conversation.number] = conversation
        self._write_member(conversation, account.number, member)

    def _write_member(self, conversation: Conversation, agent: int, member: Member) -> None:
        self._database.write(
            "INSERT OR REPLACE INTO member (conversation, agent, role, joined_at, joined_seq, present, read_seq,"
            " hidden_seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (conversation.number, agent, *dataclasses.astuple(member)),
        )


def tombstone(group: Conversation) -> dict[str, str | None]:
    """What former members of a deleted group are told."""
    return {
        "group_id": group.id,
        "deleted_by_handle": group.deleted_by,
        "deleted_at": group.deleted_at,
    }


def _pair(one: int, other: int) -> str:
    return f"{min(one, other)}:{max(one, other)}"


def _is_listed(conversation: Conversation, member: Member) -> bool:
    hidden = member.hidden_seq and conversation.last_seq <= member.hidden_seq
    return member.present and conversation.deleted_at is None and not hidden
