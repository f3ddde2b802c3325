"""The keys of identities and the secrets of plugins: read where the configuration says, and never printed.

Always true: a key that was read here is known to the log filter before anybody else can hold it. No error quotes a
key, nor anything that a key file or command gave instead of one.
Not here: which keys a server accepts.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import shlex
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from agentd import logs
from agentd.config.settings import KeySource
from agentd.errors import ConfigError

_KEY_MIN_CHARS = 8  # anything shorter is a slip of the pen, and hiding it in logs would blot out ordinary words
_ENCRYPTION_KEY_BYTES = 32
_KEY_MAX_BYTES = 8_192  # a header longer than this is refused by common servers
_COMMAND_TIMEOUT_S = 15.0  # a password store may ask an agent, but nobody is there to type


class Secret:
    """A key. Only `reveal` gives it away; printing, formatting, comparing and pickling do not."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself, for the one who sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not written anywhere")


def resolve_key(source: KeySource, environ: Mapping[str, str] | None = None) -> Secret:
    """Read a key afresh, so that a rotated one is found without a restart.

    It may wait for a disk or a command of the operator's (up to 15 s): call it in a thread.
    environ: for `env` and `credential`; the process's own if None.
    Raises ConfigError with one problem, which names the remedy.
    """
    value = _checked(_read(source, os.environ if environ is None else environ))
    logs.conceal(value)
    return Secret(value)


def resolve_header(source: KeySource, environ: Mapping[str, str] | None = None) -> Secret:
    """The same for the value of a header, which may be two words: "Bearer ..." """
    value = _checked(_read(source, os.environ if environ is None else environ), words=True)
    for word in (value, *value.split()):
        if len(word) >= _KEY_MIN_CHARS:
            logs.conceal(word)
    return Secret(value)


def resolve_encryption_key(source: KeySource, environ: Mapping[str, str] | None = None) -> bytes:
    """The same for the 32 bytes that the journal is encrypted under."""
    text = resolve_key(source, environ).reveal()
    for decoded in (bytes.fromhex, partial(base64.b64decode, validate=True)):
        with contextlib.suppress(ValueError):
            if len(key := decoded(text)) == _ENCRYPTION_KEY_BYTES:
                return key
    raise _no_key(
        f"it is not {_ENCRYPTION_KEY_BYTES} bytes in base64 or hexadecimal; make such a key: openssl rand -base64 32"
    )


def _read(source: KeySource, environ: Mapping[str, str]) -> str:
    match source:
        case KeySource(env=str(name)):
            return _from_environment(name, environ)
        case KeySource(file=str(path)):
            return _from_private_file(Path(path))
        case KeySource(credential=str(name)):
            return _from_credential(name, environ)
        case KeySource(command=None):
            raise _no_key('name one source for it: key = { file = "alice.key" }, or env, credential or command')
        case _:
            return _from_command(source.command)


def _no_key(problem: str) -> ConfigError:
    return ConfigError([problem])


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise _no_key(f"the environment variable {name} is not set; set it, or use key = {{ file = ... }}")
    return environ[name]


def _from_private_file(path: Path) -> str:
    """The file's text, refused if anybody but its owner may read or change it."""
    content, mode = _from_file(path)
    if mode & 0o077:
        raise _no_key(f"{path} is open to other users (mode {mode:04o}); run: chmod 600 {shlex.quote(str(path))}")
    return content


def _from_credential(name: str, environ: Mapping[str, str]) -> str:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise _no_key(
            f"credential {name} is asked for, but CREDENTIALS_DIRECTORY is not set; run agentd as a systemd unit "
            f"with LoadCredential={name}:/path/to/key, or use key = {{ file = ... }}. Of the installed service, root "
            f"sees it while the service runs"
        )
    if "/" in name or name in ("", ".", ".."):
        raise _no_key("a credential is a plain name without slashes; give the ID of LoadCredential=ID:PATH")
    # No look at the mode: systemd shows the access control list of the service's user as group rights.
    return _from_file(Path(folder) / name)[0]


def _from_file(path: Path) -> tuple[str, int]:
    """A regular file's text and mode bits."""
    try:
        # Non-blocking, since opening a named pipe would wait for somebody to write.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 -- flags
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _no_key(f"{path} is not a regular file; put the key alone into a file")
            return _decoded(file.read(_KEY_MAX_BYTES + 1), str(path)), stat.S_IMODE(status.st_mode)
    except OSError as error:
        raise _no_key(
            f"{path} cannot be read ({error.strerror}); create it with the key in it, readable by this user"
        ) from None


def _from_command(command: tuple[str, ...] | str | None) -> str:
    import subprocess  # here, since client verbs import this module and never run a command

    words = shlex.split(command) if isinstance(command, str) else list(command or ())
    if not words or not words[0]:
        raise _no_key("the command is empty; name a program that prints the key")
    try:
        # What it says on stderr may hold the key as well, so it goes nowhere.
        done = subprocess.run(  # noqa: S603 -- the operator's own command, without a shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise _no_key(f"the command {words[0]} cannot be run ({error.strerror}); install it or mend its path") from None
    except subprocess.TimeoutExpired:
        raise _no_key(
            f"the command {words[0]} gave no key within {_COMMAND_TIMEOUT_S:.0f} s; it must not ask for input"
        ) from None
    if done.returncode != 0:
        raise _no_key(f"the command {words[0]} failed (exit status {done.returncode}); run it by hand to see why")
    return _decoded(done.stdout, f"the command {words[0]}")


def _decoded(content: bytes, origin: str) -> str:
    if len(content) > _KEY_MAX_BYTES:
        raise _no_key(f"{origin} gave more than {_KEY_MAX_BYTES} bytes; it must give the key alone")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise _no_key(f"{origin} gave what is not plain text; it must give the key alone") from None


def _checked(text: str, *, words: bool = False) -> str:
    key = text.strip()
    if not key:
        raise _no_key("the key is empty; put the key there that the platform gave")
    if len(key) < _KEY_MIN_CHARS:
        raise _no_key(f"the key is shorter than {_KEY_MIN_CHARS} characters; put the whole key there")
    if not key.isascii() or not key.isprintable() or (" " in key and not words):
        raise _no_key("the key has white space or special characters within; put the key alone there")
    return key
