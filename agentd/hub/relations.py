"""What agents think of each other: contacts, blocks, reports and mutes.

All of it is in memory, written through to the database.

Not here: what follows from it for a send (sending.py) or a push (sockets.py).
"""

from __future__ import annotations

import dataclasses
from datetime import datetime

from agentd.hub.accounts import Account
from agentd.hub.answers import ApiError, invalid, not_found
from agentd.hub.clock import instant, unix_s
from agentd.hub.database import Database
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode


@dataclasses.dataclass(slots=True)
class _Contact:
    notes: str | None
    added_at: str


@dataclasses.dataclass(slots=True)
class _Mute:
    until: str | None
    until_s: float | None
    created_at: str


class Relations:
    """Contacts, blocks and mutes of every agent, keyed by the agents' numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._contacts: dict[int, dict[int, _Contact]] = {}
        self._blocks: dict[tuple[int, int], bool] = {}
        self._mutes: dict[int, dict[tuple[str, str], _Mute]] = {}
        for owner, agent, notes, added_at in database.rows("SELECT owner, agent, notes, added_at FROM contact"):
            self._contacts.setdefault(owner, {})[agent] = _Contact(notes, added_at)
        for owner, agent, reported in database.rows("SELECT owner, agent, reported FROM block"):
            self._blocks[owner, agent] = bool(reported)
        for owner, kind, target, until, created_at in database.rows(
            "SELECT owner, kind, target, until, created_at FROM mute"
        ):
            self._mutes.setdefault(owner, {})[kind, target] = _Mute(until, _seconds(until), created_at)

    # --- contacts ---

    def is_contact(self, owner: Account, agent: Account) -> bool:
        """Whether `owner` keeps `agent` as a contact."""
        return agent.number in self._contacts.get(owner.number, {})

    def holders(self, agent: Account) -> list[int]:
        """Numbers of those who keep this agent as a contact."""
        return [owner for owner, contacts in self._contacts.items() if agent.number in contacts]

    def add_contact(self, owner: Account, agent: Account) -> None:
        """Keep an agent as a contact. Repeating it changes nothing."""
        if owner is agent:
            raise invalid("An agent is no contact of its own")
        contact = _Contact(None, instant())
        if agent.number not in self._contacts.setdefault(owner.number, {}):
            self._contacts[owner.number][agent.number] = contact
            self._database.write(
                "INSERT INTO contact (owner, agent, notes, added_at) VALUES (?, ?, NULL, ?)",
                (owner.number, agent.number, contact.added_at),
            )

    def contact(self, owner: Account, agent: Account) -> wire.Contact:
        """One contact. Raises ApiError 404 if it is none."""
        found = self._contacts.get(owner.number, {}).get(agent.number)
        if found is None:
            raise not_found(ErrorCode.NOT_FOUND, f"@{agent.handle} is no contact")
        return wire.Contact(
            handle=agent.handle,
            display_name=agent.display_name,
            description=agent.description,
            status=agent.status,
            notes=found.notes,
            added_at=found.added_at,
        )

    def contact_numbers(self, owner: Account) -> list[int]:
        """Numbers of an agent's contacts, oldest first."""
        return list(self._contacts.get(owner.number, {}))

    def note(self, owner: Account, agent: Account, notes: str | None) -> None:
        """Set the private note on a contact."""
        self.contact(owner, agent)
        self._contacts[owner.number][agent.number].notes = notes
        self._database.write(
            "UPDATE contact SET notes = ? WHERE owner = ? AND agent = ?", (notes, owner.number, agent.number)
        )

    def remove_contact(self, owner: Account, agent: Account) -> None:
        """Drop a contact, if it is one."""
        self._contacts.get(owner.number, {}).pop(agent.number, None)
        self._database.write("DELETE FROM contact WHERE owner = ? AND agent = ?", (owner.number, agent.number))

    # --- blocks ---

    def blocks(self, owner: Account, agent: Account) -> bool:
        """Whether `owner` has blocked `agent`."""
        return (owner.number, agent.number) in self._blocks

    def block(self, owner: Account, agent: Account, *, report: bool = False) -> None:
        """Block an agent, or report it, which blocks it too."""
        if agent.is_system:
            raise ApiError(409, ErrorCode.SYSTEM_AGENT_PROTECTED, f"@{agent.handle} belongs to the platform")
        if owner is agent:
            raise invalid("An agent cannot block itself")
        reported = self._blocks.get((owner.number, agent.number), False)
        if report and reported:
            raise ApiError(409, ErrorCode.ALREADY_REPORTED, f"@{agent.handle} was reported before")
        self._blocks[owner.number, agent.number] = report or reported
        self._database.write(
            "INSERT OR REPLACE INTO block (owner, agent, reported, blocked_at) VALUES (?, ?, ?, ?)",
            (owner.number, agent.number, int(report or reported), instant()),
        )

    def unblock(self, owner: Account, agent: Account) -> None:
        """Lift a block, if there is one."""
        self._blocks.pop((owner.number, agent.number), None)
        self._database.write("DELETE FROM block WHERE owner = ? AND agent = ?", (owner.number, agent.number))

    # --- mutes ---

    def mute(self, owner: Account, kind: str, target: str, until: str | None) -> wire.MuteEntry:
        """Mute an agent (by handle) or a conversation (by id). Repeating it replaces the end."""
        mute = _Mute(until, _seconds(until), instant())
        self._mutes.setdefault(owner.number, {})[kind, target] = mute
        self._database.write(
            "INSERT OR REPLACE INTO mute (owner, kind, target, until, created_at) VALUES (?, ?, ?, ?, ?)",
            (owner.number, kind, target, until, mute.created_at),
        )
        return self._entry(owner, kind, target, mute)

    def unmute(self, owner: Account, kind: str, target: str) -> None:
        """Lift a mute. Raises ApiError 404 if there is none."""
        self.mute_entry(owner, kind, target)
        del self._mutes[owner.number][kind, target]
        self._database.write(
            "DELETE FROM mute WHERE owner = ? AND kind = ? AND target = ?", (owner.number, kind, target)
        )

    def mute_entry(self, owner: Account, kind: str, target: str) -> wire.MuteEntry:
        """A mute in force. Raises ApiError 404 if there is none."""
        mute = self._mutes.get(owner.number, {}).get((kind, target))
        if mute is None or _is_over(mute):
            raise not_found(ErrorCode.NOT_FOUND, "No such mute")
        return self._entry(owner, kind, target, mute)

    def mutes(self, owner: Account, kind: str | None) -> list[wire.MuteEntry]:
        """Mutes in force, of one kind or of both."""
        return [
            self._entry(owner, *key, mute)
            for key, mute in self._mutes.get(owner.number, {}).items()
            if kind in (None, key[0]) and not _is_over(mute)
        ]

    def is_muted(self, owner: int, sender_handle: str, conversation_id: str) -> bool:
        """Whether a message is not to be pushed to this agent. Runs for every push; most agents mute nobody."""
        mutes = self._mutes.get(owner)
        if not mutes:
            return False
        for key in (("agent", sender_handle), ("conversation", conversation_id)):
            mute = mutes.get(key)
            if mute is not None and not _is_over(mute):
                return True
        return False

    @staticmethod
    def _entry(owner: Account, kind: str, target: str, mute: _Mute) -> wire.MuteEntry:
        return wire.MuteEntry(
            muter_agent_id=f"agt_{owner.number}",
            target_kind=kind,
            target_id=target,
            muted_until=mute.until,
            created_at=mute.created_at,
        )


def _is_over(mute: _Mute) -> bool:
    return mute.until_s is not None and mute.until_s <= unix_s()


def _seconds(until: str | None) -> float | None:
    if until is None:
        return None
    try:
        return datetime.fromisoformat(until).timestamp()
    except ValueError:
        raise invalid("muted_until is not an ISO 8601 instant") from None
