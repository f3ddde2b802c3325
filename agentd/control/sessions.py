"""Who may look at the page: the token of this daemon, invitations that work once, and browsers that were let in.

    the token        in a file that its owner alone can read; for programs, as `Authorization: Bearer`
    an invitation    made for whoever holds the token; a browser brings it in the URL's fragment, which is sent nowhere
    a session        what the browser gets for it: a cookie that no script can read

Always true: what is kept in memory is a digest, never the secret itself; comparing takes the same time for every wrong
guess. An invitation works once and not for long. There is a bound on both, and the oldest makes room.
Not here: the clock (callers pass `now`, monotonic seconds), headers and cookies (http.py).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

from agentd import logs

TOKEN_NAME = "http_token"  # noqa: S105 -- the name of a file

_TOKEN_BYTES = 32
_INVITATION_S = 120.0  # from the command that prints the URL to the browser that opens it
_INVITATIONS_MAX = 16

log = logging.getLogger(__name__)


def take_token(state: Path) -> str:
    """This daemon's token, made if there is none or if others could have had it. It stays over restarts.

    Raises OSError.
    """
    file = state / TOKEN_NAME
    if file.exists():
        if (why := _unfit(file)) is None:
            known = file.read_text().strip()
            logs.conceal(known)
            return known
        log.warning("%s %s: it is made anew, and who used it must read it again", file, why)
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    logs.conceal(token)
    fresh = file.with_name(f"{TOKEN_NAME}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(f"{token}\n")
    fresh.replace(file)
    return token


def _unfit(file: Path) -> str | None:
    """Why what is in the file is no token that only its owner has, or None."""
    status = file.stat()
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        return "could be read by others"  # or was put there
    known = file.read_bytes().strip()
    return None if known and known.isascii() else "holds no token"


class Sessions:
    """See the module. token: the daemon's own."""

    def __init__(self, token: str, *, sessions_max: int, session_max_s: float) -> None:
        self._token = _digest(token)
        self._sessions_max = sessions_max
        self._session_max_s = session_max_s
        self._invited: dict[bytes, float] = {}
        self._let_in: dict[bytes, float] = {}
        """Digest to the end of its validity, in the order in which they were made."""

    def is_token(self, given: str) -> bool:
        """Whether this is the daemon's token."""
        return hmac.compare_digest(self._token, _digest(given))

    def invite(self, now: float) -> str:
        """A word that lets one browser in, once."""
        return _keep(self._invited, now + _INVITATION_S, _INVITATIONS_MAX)

    def accept(self, invitation: str, now: float) -> str | None:
        """The cookie of a new session, or None if the invitation is used up, too old or none at all."""
        until = self._invited.pop(_digest(invitation), None)
        if until is None or until < now:
            return None
        return _keep(self._let_in, now + self._session_max_s, self._sessions_max)

    def is_let_in(self, cookie: str, now: float) -> bool:
        """Whether this is the cookie of a session that goes on."""
        until = self._let_in.get(_digest(cookie))
        return until is not None and now < until

    def end(self, cookie: str) -> None:
        """Let this browser out."""
        self._let_in.pop(_digest(cookie), None)


def _keep(known: dict[bytes, float], until: float, most: int) -> str:
    while len(known) >= most:
        del known[next(iter(known))]
    secret = secrets.token_urlsafe(_TOKEN_BYTES)
    known[_digest(secret)] = until
    return secret


def _digest(secret: str) -> bytes:
    # A table looked up by digest tells nothing by its timing: nobody can steer towards a digest byte by byte.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
