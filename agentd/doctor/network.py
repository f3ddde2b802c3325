"""Checks of the way to each platform, and of each identity's key: names, TCP, TLS, clock, account, HELLO, sync.

Always true: requests only read, a link says hello and goodbye and acknowledges nothing, so that what the server holds
for an identity stays there. No finding holds a key or a proxy's password.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from agentd import __version__
from agentd.config import Identity, Secret, Settings, resolve_key
from agentd.core.hosts import is_loopback
from agentd.doctor.finding import FAIL, OK, WARN, Finding, of_problem
from agentd.errors import AgentdError, ConfigError, CredentialsRefused
from agentd.transport.address import proxy_for
from agentd.transport.link import dial
from agentd.transport.rest import Pool, Rest
from agentd.transport.tls import tls_context
from agentd.wire.agentchat import AgentChat
from agentd.wire.platform import Response

_AT_ONCE = 8  # identities that are looked at together
_SKEW_WARN_S, _SKEW_FAIL_S = 5.0, 60.0
_EXPIRY_WARN_DAYS = 14
_DAY_S = 86_400
_DEFAULT_PORTS = {"https": 443, "http": 80}


class _Seen(NamedTuple):
    """What looking at an identity brought. server_ahead_s: the server's clock against ours, or None."""

    findings: list[Finding]
    handle: str | None = None
    server_ahead_s: float | None = None


async def identities(settings: Settings, known: Mapping[str, str], environ: Mapping[str, str]) -> list[Finding]:
    """Every server once, then every identity. known: the handles whose mail the journal holds. environ: for keys."""
    findings: list[Finding] = []
    reachable: dict[str, bool] = {}
    for url in dict.fromkeys(identity.url for identity in settings.identity.values()):
        found = await server(url, settings.agentd.link.connect_timeout_s)
        reachable[url] = all(each.state != FAIL for each in found)
        findings += found
    room = asyncio.Semaphore(_AT_ONCE)
    async with Pool(settings.agentd.rest.connections_per_host_max) as pool:

        async def look(name: str, identity: Identity) -> _Seen:
            async with room:
                try:
                    key = await asyncio.to_thread(resolve_key, identity.key, environ)
                except ConfigError as error:
                    return _Seen([of_problem("key", name, problem) for problem in error.problems])
                return await _identity(name, identity, key, settings, pool, known.get(name))

        there = {name: each for name, each in settings.identity.items() if reachable[each.url]}
        seen = dict(zip(there, await asyncio.gather(*map(look, there, there.values())), strict=True))
    for url in dict.fromkeys(identity.url for identity in there.values()):
        findings += _clock(url, [seen[name].server_ahead_s for name, each in there.items() if each.url == url])
    return [*findings, *(finding for each in seen.values() for finding in each.findings), *_doubled(there, seen)]


def _doubled(there: Mapping[str, Identity], seen: Mapping[str, _Seen]) -> Iterable[Finding]:
    holders: dict[tuple[str, str], str] = {}
    for name, identity in there.items():
        handle = seen[name].handle
        if handle is not None and (first := holders.setdefault((identity.url, handle), name)) != name:
            remedy = "remove one of them: both would answer the same mail"
            yield Finding(FAIL, "account", name, f"is @{handle}, as identity {first} is", remedy)


# -- the server -----------------------------------------------------------------------------------------------------


async def server(url: str, timeout_s: float) -> list[Finding]:
    """Its name, a connection, its certificate. Through a proxy only the way to that is looked at."""
    proxy = proxy_for(url)
    target = urlsplit(proxy or url)
    host, port = target.hostname or "", target.port or _DEFAULT_PORTS.get(target.scheme, 0)
    about = f"{host}:{port}"
    if proxy:
        about = f"proxy {about}"
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await loop.getaddrinfo(host, port)
    except (OSError, TimeoutError) as error:
        remedy = "check the identity's url, and this machine's name servers (/etc/resolv.conf)"
        return [Finding(FAIL, "DNS", about, f"the name cannot be resolved ({_said(error)})", remedy)]
    names = ", ".join(dict.fromkeys(str(address[4][0]) for address in addresses))
    findings = [Finding(OK, "DNS", about, f"{names}, {_ms(loop.time() - began)}")]
    return [*findings, *await _connection(target, host, port, about, timeout_s, proxied=proxy is not None)]


async def _connection(
    target: SplitResult, host: str, port: int, about: str, timeout_s: float, *, proxied: bool
) -> list[Finding]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, TimeoutError) as error:
        remedy = "check the network, a firewall, and whether the server is up"
        return [Finding(FAIL, "TCP", about, f"no connection ({_said(error)})", remedy)]
    findings = [Finding(OK, "TCP", about, f"connected, {_ms(loop.time() - began)}")]
    if proxied:
        return findings
    if target.scheme != "https":
        remedy = "" if is_loopback(host) else "write the url with https://"
        state = OK if is_loopback(host) else FAIL
        return [
            *findings,
            Finding(state, "TLS", about, "plain text" + (", to this machine" * is_loopback(host)), remedy),
        ]
    return [*findings, await _tls(host, port, about, timeout_s)]


async def _tls(host: str, port: int, about: str, timeout_s: float) -> Finding:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=tls_context())
    except ssl.SSLCertVerificationError as error:
        remedy = "the certificate must be valid for this name; a private authority is named in SSL_CERT_FILE"
        return Finding(FAIL, "TLS", about, f"the certificate is not trusted: {error.verify_message}", remedy)
    except (OSError, TimeoutError) as error:
        return Finding(FAIL, "TLS", about, f"no handshake ({_said(error)})", "does the server speak TLS at this port?")
    taken = _ms(loop.time() - began)
    certificate = writer.get_extra_info("peercert") or {}
    version = writer.get_extra_info("ssl_object").version()
    writer.close()
    expires = certificate.get("notAfter")
    days = int((ssl.cert_time_to_seconds(expires) - time.time()) // _DAY_S) if expires else _EXPIRY_WARN_DAYS
    told = f"{version}, certificate good for {days} days, {taken}"
    if days < _EXPIRY_WARN_DAYS:
        return Finding(WARN, "TLS", about, told, "who runs the server must renew it")
    return Finding(OK, "TLS", about, told)


def _clock(url: str, ahead: Iterable[float | None]) -> list[Finding]:
    told = [each for each in ahead if each is not None]
    if not told:
        return []
    # The Date header has whole seconds, so the least of several is the nearest.
    skew_s = min(told, key=abs)
    host = urlsplit(url).hostname or ""
    if abs(skew_s) <= _SKEW_WARN_S:
        return [Finding(OK, "clock", host, "agrees with the server's")]
    told_of = f"is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the server's"
    state = FAIL if abs(skew_s) > _SKEW_FAIL_S else WARN
    return [Finding(state, "clock", host, told_of, "set this machine's clock: timedatectl set-ntp true")]


# -- an identity ----------------------------------------------------------------------------------------------------


async def _identity(
    name: str, identity: Identity, key: Secret, settings: Settings, pool: Pool, known: str | None
) -> _Seen:
    platform = AgentChat(name, identity.url, key.reveal, version=__version__)
    rest = Rest(identity.url, key.reveal, settings.agentd.rest, pool=pool)
    began = time.time()
    try:
        answer = await rest.perform(platform.account_request(), once=True)
        handle = platform.read_account(answer)
    except AgentdError as error:
        return _Seen([Finding(FAIL, "account", name, str(error), _remedy(error))])
    ahead_s = _ahead_s(answer, began, time.time())
    findings = [_account(name, handle, known)]
    findings.append(await _hello(name, platform, settings))
    findings.append(await _sync(name, platform, rest))
    return _Seen(findings, handle, ahead_s)


def _account(name: str, handle: str, known: str | None) -> Finding:
    if known is not None and known != handle:
        remedy = "give this account an identity of its own, or put the former key back"
        return Finding(FAIL, "account", name, f"the key is @{handle}'s, but the journal holds @{known}'s mail", remedy)
    return Finding(OK, "account", name, f"the key is @{handle}'s")


async def _hello(name: str, platform: AgentChat, settings: Settings) -> Finding:
    frames = 0

    def count(_: bytes) -> None:
        nonlocal frames
        frames += 1

    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        link_settings = settings.agentd.link
        async with dial(platform, link_settings, on_frame=count, on_burst=lambda: None) as link:
            acks = link.acks
            taken = _ms(loop.time() - began)
    except AgentdError as error:
        return Finding(FAIL, "HELLO", name, str(error), _remedy(error))
    if not acks:
        remedy = "nothing to do here; while handlers are behind nothing can be left with this server"
        return Finding(WARN, "HELLO", name, f"accepted, {taken}, but the server marks mail as it writes it", remedy)
    return Finding(OK, "HELLO", name, f"accepted, {taken}")


async def _sync(name: str, platform: AgentChat, rest: Rest) -> Finding:
    try:
        page = platform.read_drain(await rest.perform(platform.drain_request(None), once=True))
    except AgentdError as error:
        return Finding(FAIL, "sync", name, str(error), _remedy(error))
    if page.malformed is not None:
        remedy = "update agentd; the row stays with the server until it can be read"
        return Finding(WARN, "sync", name, "holds a row that this version cannot read", remedy)
    held = f"{page.count} messages wait on its first page" if page.count else "nothing waits"
    return Finding(OK, "sync", name, held)


def _remedy(error: AgentdError) -> str:
    if isinstance(error, CredentialsRefused):
        return "put a key there that the platform takes; a running daemon finds it by itself"
    return "see whether the platform has trouble; agentd tries again by itself"


def _ahead_s(answer: Response, began: float, ended: float) -> float | None:
    try:
        said = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
    # Somewhere within the second that it names, and between our question and its answer.
    if began - 1 <= said <= ended:
        return 0.0
    return said - ended if said > ended else said + 1 - began


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
