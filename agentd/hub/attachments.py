"""Files: who stored what for whom, and the addresses at which the bytes go in and out.

An address holds a random word instead of a key, works once and for minutes. The words are in memory only: after a
restart new ones are asked for.

Always true: what is stored has the size and the digest that were promised.
Not here: HTTP (routes/attachments.py), who is in a conversation (conversations.py).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NamedTuple

from agentd.hub.accounts import Account
from agentd.hub.answers import invalid, not_found
from agentd.hub.clock import instant, unix_s
from agentd.hub.conversations import Conversation
from agentd.hub.database import Database
from agentd.hub.ids import Ids
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode

CONTENT_TYPES = frozenset(
    (
        *("image/png", "image/jpeg", "image/gif", "image/webp"),
        *("application/pdf", "application/json"),
        *("text/plain", "text/markdown", "text/csv"),
        *("audio/mpeg", "audio/wav", "audio/ogg"),
        *("video/mp4", "video/webm"),
    )
)
_FILENAME_MAX_CHARS = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Attachment(NamedTuple):
    """A file. conversation, recipient: whom it is for, one of them. content: None until it has been stored."""

    number: int
    owner: int
    conversation: int | None
    recipient: int | None
    content_type: str
    size: int
    sha256: str
    content: bytes | None


class _Word(NamedTuple):
    """What an address is good for."""

    number: int
    stores: bool
    until: float


class Attachments:
    """The files of every agent. life_s: how long an address works."""

    def __init__(self, database: Database, life_s: float) -> None:
        self._database = database
        self._life_s = life_s
        self._ids = Ids("att_", database.tag)
        self._words: dict[str, _Word] = {}

    def promise(
        self, owner: Account, request: wire.UploadRequest, target: Conversation | Account, size_max: int
    ) -> tuple[str, str]:
        """Make room for a file. Returns its id and the word for storing it. Raises ApiError 400."""
        if not 1 <= len(request.filename) <= _FILENAME_MAX_CHARS:
            raise invalid("filename is 1 to 255 characters")
        if request.content_type not in CONTENT_TYPES:
            raise invalid(f"content_type is none of {', '.join(sorted(CONTENT_TYPES))}")
        if not 0 < request.size <= size_max:
            raise invalid(f"size is 1 to {size_max}")
        if not _SHA256.fullmatch(request.sha256):
            raise invalid("sha256 is 64 lowercase hex digits")
        number = 1 + self._database.row("SELECT coalesce(max(number), 0) FROM attachment")[0]
        self._database.write(
            "INSERT INTO attachment"
            " (number, owner, conversation, recipient, filename, content_type, size, sha256, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                owner.number,
                target.number if isinstance(target, Conversation) else None,
                target.number if isinstance(target, Account) else None,
                request.filename,
                request.content_type,
                request.size,
                request.sha256,
                instant(),
            ),
        )
        return self._ids.make(number), self._word(number, stores=True)

    @property
    def life_s(self) -> int:
        """How long an address works, in whole seconds."""
        return int(self._life_s)

    def get(self, id_: str) -> Attachment:
        """A file that has been stored. Raises ApiError 404."""
        found = self._found(self._ids.number_of(id_))
        if found is None or found.content is None:
            raise not_found(ErrorCode.NOT_FOUND, "No such attachment")
        return found

    def word_for(self, attachment: Attachment) -> str:
        """A word for fetching a file."""
        return self._word(attachment.number, stores=False)

    def store(self, word: str, content: bytes) -> None:
        """Take in the bytes of a file. Raises ApiError 400, 404."""
        attachment = self._spent(word, stores=True)
        if len(content) != attachment.size or hashlib.sha256(content).hexdigest() != attachment.sha256:
            raise invalid("These are not the bytes that were promised")
        self._database.write("UPDATE attachment SET content = ? WHERE number = ?", (content, attachment.number))

    def fetch(self, word: str) -> Attachment:
        """Give out a file. Raises ApiError 404."""
        return self._spent(word, stores=False)

    def _word(self, number: int, *, stores: bool) -> str:
        now = unix_s()
        for old in [word for word, meant in self._words.items() if meant.until < now]:
            del self._words[old]
        word = secrets.token_urlsafe(24)
        self._words[word] = _Word(number, stores, now + self._life_s)
        return word

    def _spent(self, word: str, *, stores: bool) -> Attachment:
        meant = self._words.get(word)
        attachment = None
        if meant is not None and meant.stores == stores and meant.until >= unix_s():
            del self._words[word]
            attachment = self._found(meant.number)
        if attachment is None:
            raise not_found(ErrorCode.NOT_FOUND, "This address has expired or was used")
        return attachment

    def _found(self, number: int | None) -> Attachment | None:
        row = self._database.row(
            "SELECT number, owner, conversation, recipient, content_type, size, sha256, content FROM attachment"
            " WHERE number = ?",
            (-1 if number is None or number >= 1 << 63 else number,),
        )
        return None if row is None else Attachment(*row)
