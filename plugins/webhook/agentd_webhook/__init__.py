"""webhook: each message is a signed POST to a URL, whose answer decides its fate and may carry replies.

Always true: a request is signed over its time and its body, and carries an id that every repeat of it carries. TLS is
verified, no redirect is followed, and plain http goes no further than this machine. The secret is in no log, error or
repr.
Not here: order and retries (the daemon).
"""

from __future__ import annotations

import email.utils
import hashlib
import hmac
import ipaddress
import os
import ssl
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from agentd.plugin import Context, GiveUp, Message, Plugin, PluginContext, RetryLater, portable

_SECRET_MIN_CHARS = 16
_ANSWER_TIME_S = 0.5  # left of a turn's time when its request is given up, so that it can still say what to do
_TRY_AGAIN = (408, 429)  # besides every 5xx: time-out, and too many

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class SecretSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the secret lies: exactly one of these.

    file: a path, readable by its owner only. env: name of an environment variable. credential: a name under
    $CREDENTIALS_DIRECTORY, which systemd makes.
    """

    file: _Name | None = None
    env: _Name | None = None
    credential: Annotated[str, msgspec.Meta(pattern=r"^[^/.][^/]*$")] | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in self.__struct_fields__) != 1:
            raise ValueError('name one source: { file = "hook.secret" }, { env = "HOOK_SECRET" } or credential')


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of `[plugin.NAME.config]`. The README tells what each is for."""

    url: str
    secret: SecretSource
    messages: Literal["addressed", "all"] = "all"
    headers: dict[_Name, str] = {}
    ca_file: _Name | None = None
    timeout_s: _Seconds = 30.0
    retry_first_s: _Seconds = 2.0
    retry_max_s: _Seconds = 600.0
    answer_max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 262_144

    def __post_init__(self) -> None:
        if problem := _url_problem(self.url):
            raise ValueError(f"url {problem}")


class Said(msgspec.Struct, frozen=True):
    """What is to be said: at least one of text and data."""

    text: str | None = None
    data: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class SaidTo(Said, frozen=True, kw_only=True):
    """The same, to somebody else."""

    to: str


class Answer(msgspec.Struct, frozen=True):
    """What a 2xx may carry as JSON; other fields are nobody's business."""

    reply: str | Said | None = None
    replies: tuple[str | Said, ...] = ()
    sends: tuple[SaidTo, ...] = ()


class AnswerUnusable(Exception):
    """The receiver said that it handled the message, but its answer cannot be read."""


class _Receiver:
    """One URL with what it takes to ask it."""

    def __init__(self, settings: Settings, secret: bytes, verifying: ssl.SSLContext) -> None:
        self.url = settings.url
        self.secret = secret
        # No cookies: one conversation's answer must not colour the request of another.
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=verifying),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=settings.headers,
        )


plugin = Plugin("webhook", config=Settings)

_decode_answer = msgspec.json.Decoder(Answer).decode

# By the settings object that setup, handlers and teardown of one plugin share: several plugins of one configuration
# may be this module.
_receivers: dict[int, _Receiver] = {}


@plugin.setup
async def prepare(ctx: PluginContext[Settings]) -> None:
    """Read the secret and the certificates now, so that what is wrong with them is told now."""
    key = f"plugin.{ctx.name}.config"
    secret = _read_secret(f"{key}.secret", ctx.config.secret, os.environ)
    try:
        verifying = ssl.create_default_context(cafile=ctx.config.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{key}.ca_file: {ctx.config.ca_file} holds no certificate that can be read") from error
    _receivers[id(ctx.config)] = _Receiver(ctx.config, secret, verifying)


@plugin.teardown
async def close(ctx: PluginContext[Settings]) -> None:
    """Close its connections."""
    receiver = _receivers.pop(id(ctx.config), None)
    if receiver is not None:
        await receiver.session.close()


@plugin.on(Message)
async def post(message: Message, ctx: Context[Settings]) -> None:
    """Give the message to the receiver, and carry its answer back."""
    settings = ctx.config
    if settings.messages == "addressed" and not (message.direct or message.mentioned):
        return
    status, headers, content = await _ask(_receivers[id(settings)], message, ctx)
    if 200 <= status < 300:
        _carry_back(headers, content, ctx)
    elif status in _TRY_AGAIN or status >= 500:
        asked_s = _asked_s(headers.get("Retry-After"), time.time())
        # "At once" is no answer to a failure: attempts would be spent before anything can have changed.
        delay_s = min(asked_s, settings.retry_max_s) if asked_s else _growing_s(settings, ctx.attempt)
        raise RetryLater(delay_s, f"the receiver answered {status}")
    elif status >= 400:
        raise GiveUp(f"the receiver answered {status}")
    else:
        raise AnswerUnusable(f"the receiver answered {status}; redirects are not followed, name the last address")


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The value of the header `Agentd-Signature`. at: Unix seconds."""
    digest = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


async def _ask(receiver: _Receiver, message: Message, ctx: Context[Settings]) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and content of the answer. Raises RetryLater where there was none."""
    body = msgspec.json.encode(portable(message))
    now = time.time()
    headers = {
        "Content-Type": "application/json",
        "Agentd-Attempt": str(ctx.attempt),
        "Agentd-Delivery": _delivery_id(ctx.name, message),
        "Agentd-Signature": signature(receiver.secret, int(now), body),
    }
    limit_s = max(_ANSWER_TIME_S, min(ctx.config.timeout_s, ctx.deadline - now - _ANSWER_TIME_S))
    try:
        async with receiver.session.post(
            receiver.url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=limit_s),
        ) as answer:
            content = await _content(answer, ctx.config.answer_max_bytes)
            return answer.status, answer.headers, content
    except TimeoutError:
        raise RetryLater(_growing_s(ctx.config, ctx.attempt), f"no answer within {limit_s:.1f} s") from None
    except (aiohttp.ClientError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RetryLater(_growing_s(ctx.config, ctx.attempt), f"the receiver cannot be reached: {reason}") from None


async def _content(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    if not 200 <= answer.status < 300:
        return b""
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > limit:
            raise AnswerUnusable(f"the answer is longer than {limit} bytes (answer_max_bytes)")
    return bytes(content)


def _carry_back(headers: Mapping[str, str], content: bytes, ctx: Context[Settings]) -> None:
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or not content.strip():
        return
    try:
        answer = _decode_answer(content)
    except (msgspec.MsgspecError, ValueError) as error:
        raise AnswerUnusable(f"the answer is none of ours: {error}") from None
    replies = ((answer.reply,) if answer.reply is not None else ()) + answer.replies
    for said in (Said(each) if isinstance(each, str) else each for each in replies):
        ctx.reply(said.text, data=said.data, metadata=said.metadata)
    for sent in answer.sends:
        ctx.send(sent.to, sent.text, data=sent.data, metadata=sent.metadata)


def _delivery_id(name: str, message: Message) -> str:
    """The same for every attempt at one message by one plugin, and for nothing else."""
    cause = msgspec.json.encode([message.identity, message.epoch, message.conversation, message.id, name])
    return hashlib.blake2b(cause, digest_size=16).hexdigest()


def _growing_s(settings: Settings, attempt: int) -> float:
    return min(settings.retry_max_s, settings.retry_first_s * 2.0 ** min(attempt - 1, 60))


def _asked_s(retry_after: str | None, now: float) -> float | None:
    """Seconds from now that a Retry-After names, as a number or as a date; None if it names none."""
    if retry_after is None:
        return None
    if retry_after.strip().isascii() and retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _url_problem(url: str) -> str | None:
    remedy = "write it like https://agent.example/hook"
    try:
        parts = urlsplit(url)
        valid = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        return f"is not an address; {remedy}"
    if parts.username is not None or parts.password is not None:
        return "has a user or password in it, where it would show in logs; use headers, or the signature"
    if not valid or parts.scheme not in ("http", "https"):
        return f"is not an http or https address; {remedy}"
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        return "is plain http to another machine, where anybody on the way reads it; use https"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_secret(key: str, source: SecretSource, environ: Mapping[str, str]) -> bytes:
    secret = _found_secret(key, source, environ)
    if len(secret.strip()) < _SECRET_MIN_CHARS:
        raise ValueError(f"{key}: is shorter than {_SECRET_MIN_CHARS} characters; make one with: openssl rand -hex 32")
    return secret.strip().encode()


def _found_secret(key: str, source: SecretSource, environ: Mapping[str, str]) -> str:
    if source.file is not None:
        return _from_file(key, Path(source.file), private=True)
    name = "CREDENTIALS_DIRECTORY" if source.env is None else source.env
    if name not in environ:
        raise ValueError(f"{key}: the environment variable {name} is not set; set it, or name a file")
    if source.credential is None:
        return environ[name]
    # systemd shows the access control list of the service's user as group rights.
    return _from_file(key, Path(environ[name], source.credential), private=False)


def _from_file(key: str, path: Path, *, private: bool) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read().decode("ascii")
    except OSError as error:
        raise ValueError(f"{key}: {path} cannot be read ({error.strerror}); create it with the secret in it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{key}: {path} holds what is not plain text; put the secret alone there") from None
    if private and mode & 0o077:
        raise ValueError(f"{key}: {path} is open to other users (mode {mode:04o}); run: chmod 600 {path}")
    return text
