"""What people wrote and plugins keep, encrypted in the rows that hold it.

The operator's key never encrypts a value. Each time the journal is opened for writing, a data key is derived from it
and a fresh salt (HKDF, SHA-256), and values are sealed with that (AES-256, GCM). The salts are rows of `sealing`, so
that what earlier processes wrote can be read.

    value     a mark, number of the data key, count under it, ciphertext with its tag
    in text   the mark, and the rest in base 64
    plain     as it is; behind an escape where it begins with the mark, or with the escape, itself

Always true: a nonce is a count under a key that nobody else has, and so never comes twice. A value opens in its own
place only: table, column and key of its row are authenticated with it. What was written without a key can be read
beside it: the first byte tells one from the other, whatever somebody may have written.
Not here: where the key lies (config), which columns these are (the modules of the tables, resealing.py).
"""

from __future__ import annotations

import base64
import os
import sqlite3
import struct
import time
from typing import TYPE_CHECKING, Any

from agentd import config
from agentd.errors import JournalUnusable, ValueDamaged
from agentd.journal.sqlite.statements import SQL

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MARK = b"\x01"
_TEXT_MARK = "\x01"
_ESCAPE, _TEXT_ESCAPE = b"\x02", "\x02"
_HEAD = struct.Struct(">cIQ")  # mark, number of the data key, count
HEAD_MAX = 17
"""Bytes or characters from which `is_due` knows a value: the mark, and the head behind it in base 64."""

_SALT_BYTES = 32
_PROOF = b"agentd journal"

Part = int | str | None


class Seals:
    """Those of one connection. Without a key everything stays as it is; what is sealed then cannot be read.

    current: number of the data key that seals, or None.
    """

    current: int | None = None

    @property
    def kept(self) -> list[int]:
        """Numbers of the data keys that stay of use."""
        return []

    def seal(self, value: bytes, *place: Part) -> bytes:
        """The value as it goes to disk. place: table and column, and the key of the row."""
        return _ESCAPE + value if value[:1] in (_MARK, _ESCAPE) else value

    def seal_text(self, value: str, *place: Part) -> str:
        """The same for a column of text."""
        return _TEXT_ESCAPE + value if value[:1] in (_TEXT_MARK, _TEXT_ESCAPE) else value

    def open(self, value: bytes, *place: Part) -> bytes:
        """The value as it was. Raises ValueDamaged where it does not open, JournalUnusable where nothing would."""
        if value[:1] == _MARK:
            raise JournalUnusable(f"{_spelled(place)} is encrypted; name the key under {WHERE}")
        return value.removeprefix(_ESCAPE)

    def open_text(self, value: str, *place: Part) -> str:
        """The same for a column of text."""
        if value.startswith(_TEXT_MARK):
            self.open(_MARK, *place)
        return value.removeprefix(_TEXT_ESCAPE)

    def told(self, value: str, *place: Part) -> str:
        """The same for what only people read, and, where it does not open, why not."""
        try:
            return self.open_text(value, *place)
        except ValueDamaged as damage:
            return str(damage)

    def is_due(self, value: bytes | str) -> bool:
        """Whether a value is not sealed as it would be today. Its first HEAD_MAX bytes or characters will do."""
        return value[:1] in (_MARK, _TEXT_MARK)


WHERE = "[agentd.journal.encryption] key"
NONE = Seals()


class Keyed(Seals):
    """With a key, or with an old one only, which opens and does not seal."""

    def __init__(self, opening: dict[int, AESGCM], current: int | None, up_to_date: frozenset[int]) -> None:
        self._opening = opening
        self._up_to_date = up_to_date
        self._count = 0
        self.current = current

    @property
    def kept(self) -> list[int]:
        """See Seals."""
        return sorted(self._up_to_date)

    def seal(self, value: bytes, *place: Part) -> bytes:
        """See Seals. Nothing stays nothing: it says that retention let a value go."""
        if self.current is None or not value:
            return super().seal(value, *place)
        self._count += 1
        head = _HEAD.pack(_MARK, self.current, self._count)
        return head + self._opening[self.current].encrypt(_nonce(self._count), value, head + _authenticated(place))

    def seal_text(self, value: str, *place: Part) -> str:
        """See Seals."""
        if self.current is None or not value:
            return super().seal_text(value, *place)
        return _TEXT_MARK + base64.b64encode(self.seal(value.encode("utf-8", "surrogatepass"), *place)[1:]).decode()

    def open(self, value: bytes, *place: Part) -> bytes:
        """See Seals."""
        from cryptography.exceptions import InvalidTag

        if value[:1] != _MARK:
            return value.removeprefix(_ESCAPE)
        try:
            _, number, count = _HEAD.unpack_from(value)
            head = value[: _HEAD.size]
            return self._opening[number].decrypt(_nonce(count), value[_HEAD.size :], head + _authenticated(place))
        except KeyError:
            # Not taken for damage to this value: it may be so of all that a process wrote.
            raise JournalUnusable(
                f"{_spelled(place)} is sealed with a data key of which the journal has no salt. Put a backup in place."
            ) from None
        except (InvalidTag, struct.error):
            raise ValueDamaged(
                f"{_spelled(place)} does not open: it was changed or moved outside of agentd. Put a backup in place, "
                "or give this one up: see Operating, A value that does not open"
            ) from None

    def open_text(self, value: str, *place: Part) -> str:
        """See Seals."""
        if not value.startswith(_TEXT_MARK):
            return value.removeprefix(_TEXT_ESCAPE)
        try:
            sealed = base64.b64decode(value[1:], validate=True)
        except ValueError:
            sealed = b""
        return self.open(_MARK + sealed, *place).decode("utf-8", "surrogatepass")

    def is_due(self, value: bytes | str) -> bool:
        """See Seals."""
        if value[:1] not in (_MARK, _TEXT_MARK):
            return self.current is not None and bool(value)
        try:
            sealed = value if isinstance(value, bytes) else _MARK + base64.b64decode(value[1:])
            return self.current is None or _HEAD.unpack_from(sealed)[1] not in self._up_to_date
        except (ValueError, struct.error):
            return True  # whoever opens it then is told what is wrong


class Connection(sqlite3.Connection):
    """One that knows how its values are sealed."""

    seals: Seals = NONE


def seals_of(connection: sqlite3.Connection) -> Seals:
    """How values of this connection are sealed."""
    return connection.seals if isinstance(connection, Connection) else NONE


def unlock(connection: Connection, settings: config.Encryption, *, to_write: bool) -> None:
    """Have what this journal's values are sealed with. to_write: from now on seal, if there is a key.

    Raises ConfigError where a key cannot be read, JournalUnusable where it is not the one.
    """
    rows = connection.execute(SQL["sealing_list"]).fetchall()
    key = None if settings.key is None else config.resolve_encryption_key(settings.key)
    old = None if settings.old_key is None else config.resolve_encryption_key(settings.old_key)
    if key is None and old is None:
        if rows:
            raise JournalUnusable(f"the journal is encrypted, and {WHERE} names no key. Name the one it had.")
        return
    opening, up_to_date = {}, set()
    for number, salt, proof in rows:
        found = next((aead for each in (key, old) if each and (aead := _proved(each, salt, proof, number))), None)
        if found is None:
            raise JournalUnusable(
                f"the journal is encrypted under another key than {WHERE} names. Name the one it had there, or as "
                "old_key beside a new one, then run agentd vacuum."
            )
        opening[number] = found
        if key is not None and _proved(key, salt, proof, number) is not None:
            up_to_date.add(number)
    current = None
    if key is not None and to_write:
        current = max(opening, default=0) + 1
        salt = os.urandom(_SALT_BYTES)
        opening[current] = _data_key(key, salt)
        proof = opening[current].encrypt(_nonce(0), _PROOF, _authenticated((current,)))
        connection.execute(SQL["sealing_add"], (current, salt, proof, time.time()))
        up_to_date.add(current)
    connection.seals = Keyed(opening, current, frozenset(up_to_date))


def _data_key(key: bytes, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, salt, _PROOF).derive(key))


def _proved(key: bytes, salt: bytes, proof: bytes, number: int) -> AESGCM | None:
    """The data key of this row, if it comes from this key."""
    from cryptography.exceptions import InvalidTag

    aead = _data_key(key, salt)
    try:
        aead.decrypt(_nonce(0), proof, _authenticated((number,)))
    except InvalidTag:
        return None
    return aead


def _nonce(count: int) -> bytes:
    return count.to_bytes(12, "big")


def _authenticated(place: tuple[Part, ...]) -> bytes:
    return repr(place).encode()


def _spelled(place: tuple[Any, ...]) -> str:
    column, *row = place
    return (
        f"{column} of row {', '.join(map(str, row))} in the journal" if row else f"a value of {column} in the journal"
    )
