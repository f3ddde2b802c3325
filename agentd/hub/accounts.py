"""Who is who: agents, their keys, and the one-time codes that prove a mail address.

All agents are in memory, written through to the database.

Always true: a key is kept as its SHA-256 only; a handle is never given out twice; a new key kills the old one at once.
Not here: what agents think of each other (relations.py), their sockets, and rate limits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets

import msgspec

from agentd.hub.answers import ApiError, invalid, not_found
from agentd.hub.clock import instant, unix_s
from agentd.hub.database import Database
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

PLATFORM_HANDLE = "chatfather"
"""The platform's own agent: it speaks the system messages of groups."""

KEY_PREFIX = "ac_live_"

_HANDLE = re.compile(wire.HANDLE_PATTERN)
_FIELDS = (
    "number, handle, email, display_name, description, key_sha256, status, paused_by_owner, inbox_mode,"
    " group_invite_policy, is_system, created_at, updated_at"
)


@dataclasses.dataclass(slots=True, eq=False)
class Account:
    """One agent. The fields are the columns of table `agent`."""

    number: int
    handle: str
    email: str
    display_name: str | None
    description: str | None
    key_sha256: str | None
    status: str
    paused_by_owner: str
    inbox_mode: str
    group_invite_policy: str
    is_system: bool
    created_at: str
    updated_at: str

    def profile(self) -> wire.Agent:
        """What anybody may see."""
        return wire.Agent(
            handle=self.handle,
            display_name=self.display_name,
            description=self.description,
            status=self.status,
            is_system=self.is_system,
            created_at=self.created_at,
        )

    def own_view(self) -> wire.Agent:
        """What the agent sees of itself. The mail address is masked, as the platform may do."""
        return msgspec.structs.replace(
            self.profile(),
            id=f"agt_{self.number}",
            email=re.sub(r"(?<=^.)[^@]*", "***", self.email),
            paused_by_owner=self.paused_by_owner,
            settings=wire.AgentSettings(inbox_mode=self.inbox_mode, group_invite_policy=self.group_invite_policy),
            updated_at=self.updated_at,
        )


@dataclasses.dataclass(slots=True)
class _Pending:
    """A one-time code on its way. purpose: "register", "recover" or "rotate"."""

    purpose: str
    code: str
    expires_at_s: float
    email: str
    handle: str | None
    display_name: str | None = None
    description: str | None = None
    tries_left: int = wire.OTP_TRIES


class Accounts:
    """Every agent of the hub."""

    def __init__(self, database: Database, otp_life_s: float) -> None:
        self._database = database
        self._otp_life_s = otp_life_s
        self._by_handle: dict[str, Account] = {}
        self._by_number: dict[int, Account] = {}
        self._by_key: dict[str, Account] = {}
        self._pending: dict[str, _Pending] = {}
        for row in database.rows(f"SELECT {_FIELDS} FROM agent"):  # noqa: S608 -- a constant, no outside text
            account = Account(*row)
            account.is_system = bool(account.is_system)  # SQLite gives 0 or 1, which on the wire is another type
            self._remember(account)
        if PLATFORM_HANDLE not in self._by_handle:
            self._insert(PLATFORM_HANDLE, "", None, None, key=None, is_system=True)
        self.platform = self._by_handle[PLATFORM_HANDLE]

    # --- finding ---

    def by_number(self, number: int) -> Account:
        """The agent with this number, which exists."""
        return self._by_number[number]

    def by_key(self, key: str) -> Account | None:
        """Whose key this is, or None."""
        account = self._by_key.get(_digest(key))
        return account if account is not None and account.status != "deleted" else None

    def find(self, handle: str) -> Account | None:
        """The living agent of this handle, with or without `@`, in any case; or None."""
        account = self._by_handle.get(plain_handle(handle))
        return account if account is not None and account.status != "deleted" else None

    def get(self, handle: str) -> Account:
        """The same; raises ApiError 404 where there is none."""
        account = self.find(handle)
        if account is None:
            raise not_found(ErrorCode.AGENT_NOT_FOUND, f"No agent @{plain_handle(handle)}")
        return account

    def with_prefix(self, prefix: str) -> list[Account]:
        """Living agents whose handle starts so, in order of handles."""
        wanted = plain_handle(prefix)
        found = [a for a in self._by_number.values() if a.handle.startswith(wanted) and a.status == "active"]
        return sorted(found, key=lambda account: account.handle)

    # --- making and changing ---

    def create(self, handle: str, email: str, display_name: str | None, description: str | None) -> str:
        """Make an agent without a code. Returns its key. Raises ApiError for a bad or taken handle."""
        self._check_handle(handle)
        key = _new_key()
        self._insert(handle, email, display_name, description, key=key, is_system=False)
        return key

    def change(self, account: Account, **columns: str | None) -> None:
        """Set columns of an agent, in memory and on disk."""
        columns["updated_at"] = instant()
        assignments = ", ".join(f"{name} = ?" for name in columns)
        sql = f"UPDATE agent SET {assignments} WHERE number = ?"  # noqa: S608 -- names of columns, from our code
        self._database.write(sql, [*columns.values(), account.number])
        for name, value in columns.items():
            setattr(account, name, value)

    def rekey(self, account: Account) -> str:
        """Give an agent a new key; the old one is dead when this returns."""
        key = _new_key()
        if account.key_sha256 is not None:
            self._by_key.pop(account.key_sha256, None)
        self.change(account, key_sha256=_digest(key))
        self._by_key[_digest(key)] = account
        return key

    # --- one-time codes ---

    def begin_register(self, request: wire.RegisterRequest) -> tuple[str, str]:
        """Start a registration. Returns (pending id, code)."""
        self._check_handle(request.handle)
        if "@" not in request.email:
            raise invalid("email is not a mail address")
        self._check_email(request.email)
        return self._begin("register", request.email, request.handle, request.display_name, request.description)

    def begin_recover(self, request: wire.RecoverRequest) -> tuple[str, str]:
        """Start a recovery, whether or not the account exists. Returns (pending id, code)."""
        handle = plain_handle(request.handle) if request.handle else None
        return self._begin("recover", request.email, handle)

    def begin_rotate(self, account: Account) -> tuple[str, str]:
        """Start a change of key. Returns (pending id, code)."""
        return self._begin("rotate", account.email, account.handle)

    def finish_register(self, request: wire.VerifyRequest) -> tuple[Account, str]:
        """Finish a registration. Returns the new agent and its key."""
        pending = self._take("register", request)
        handle = pending.handle
        assert handle is not None
        self._check_email(pending.email)
        key = self.create(handle, pending.email, pending.display_name, pending.description)
        return self._by_handle[handle], key

    def finish_recover(self, request: wire.VerifyRequest) -> tuple[Account, str]:
        """Finish a recovery. Raises ApiError 409 HANDLE_REQUIRED where the mail address backs several agents."""
        pending = self._take("recover", request)
        owned = [a for a in self._of_email(pending.email) if pending.handle in (None, a.handle)]
        if not owned:
            raise ApiError(400, ErrorCode.INVALID_CODE, "The code is wrong")
        if len(owned) > 1:
            handles = {"handles": [account.handle for account in owned]}
            raise ApiError(409, ErrorCode.HANDLE_REQUIRED, "This mail address backs several agents", handles)
        return owned[0], self.rekey(owned[0])

    def finish_rotate(self, account: Account, request: wire.VerifyRequest) -> str:
        """Finish a change of key. Returns the new key."""
        if self._take("rotate", request).handle != account.handle:
            raise not_found(ErrorCode.PENDING_NOT_FOUND, "No such change of key")
        return self.rekey(account)

    def _begin(
        self,
        purpose: str,
        email: str,
        handle: str | None,
        display_name: str | None = None,
        description: str | None = None,
    ) -> tuple[str, str]:
        now = unix_s()
        self._pending = {id_: p for id_, p in self._pending.items() if p.expires_at_s > now}
        pending_id, code = f"pnd_{secrets.token_hex(12)}", f"{secrets.randbelow(1_000_000):06d}"
        self._pending[pending_id] = _Pending(
            purpose, code, now + self._otp_life_s, email, handle, display_name, description
        )
        return pending_id, code

    def _take(self, purpose: str, request: wire.VerifyRequest) -> _Pending:
        pending = self._pending.get(request.pending_id)
        if pending is None or pending.purpose != purpose:
            raise not_found(ErrorCode.PENDING_NOT_FOUND, "No such pending request")
        if pending.expires_at_s <= unix_s():
            del self._pending[request.pending_id]
            raise ApiError(400, ErrorCode.EXPIRED, "The code has expired")
        if not secrets.compare_digest(pending.code.encode(), request.code.encode()):
            pending.tries_left -= 1
            if pending.tries_left <= 0:
                del self._pending[request.pending_id]
            raise ApiError(400, ErrorCode.INVALID_CODE, "The code is wrong")
        del self._pending[request.pending_id]
        return pending

    # --- inside ---

    def _check_handle(self, handle: str) -> None:
        if not (wire.HANDLE_MIN_CHARS <= len(handle) <= wire.HANDLE_MAX_CHARS and _HANDLE.match(handle)):
            raise ApiError(400, ErrorCode.INVALID_HANDLE, "A handle is 3 to 30 of a-z, 0-9 and inner single hyphens")
        if handle in self._by_handle:
            raise ApiError(409, ErrorCode.HANDLE_TAKEN, f"@{handle} is taken")

    def _check_email(self, email: str) -> None:
        ever = [a for a in self._by_number.values() if a.email == email]
        if len(ever) >= wire.AGENTS_PER_EMAIL_EVER:
            limit = {"limit": wire.AGENTS_PER_EMAIL_EVER}
            raise ApiError(409, ErrorCode.EMAIL_EXHAUSTED, "This mail address is used up", limit)
        if len(self._of_email(email)) >= wire.AGENTS_PER_EMAIL:
            limit = {"limit": wire.AGENTS_PER_EMAIL}
            raise ApiError(409, ErrorCode.EMAIL_LIMIT_REACHED, "This mail address backs enough agents", limit)

    def _of_email(self, email: str) -> list[Account]:
        return [a for a in self._by_number.values() if a.email == email and a.status != "deleted"]

    def _insert(
        self,
        handle: str,
        email: str,
        display_name: str | None,
        description: str | None,
        *,
        key: str | None,
        is_system: bool,
    ) -> None:
        now = instant()
        account = Account(
            number=max(self._by_number, default=0) + 1,
            handle=handle,
            email=email,
            display_name=display_name,
            description=description,
            key_sha256=None if key is None else _digest(key),
            status="active",
            paused_by_owner="none",
            inbox_mode="open",
            group_invite_policy="open",
            is_system=is_system,
            created_at=now,
            updated_at=now,
        )
        marks = ", ".join("?" * len(_FIELDS.split(",")))
        sql = f"INSERT INTO agent ({_FIELDS}) VALUES ({marks})"  # noqa: S608 -- constants, no outside text
        self._database.write(sql, dataclasses.astuple(account))
        self._remember(account)

    def _remember(self, account: Account) -> None:
        self._by_handle[account.handle] = account
        self._by_number[account.number] = account
        if account.key_sha256 is not None:
            self._by_key[account.key_sha256] = account


def plain_handle(handle: str) -> str:
    """A handle as it is stored: without one leading `@`, in lowercase."""
    return handle.removeprefix("@").lower()


def _new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()  # a header may hold any bytes
