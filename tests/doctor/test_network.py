"""What the doctor says of the way to a platform: real sockets, the hub, a TLS server, a proxy's address."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from contextlib import AbstractAsyncContextManager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agentd.config import Identity, KeySource, Settings
from agentd.demo.proof import Proof
from agentd.doctor import FAIL, OK, WARN, network
from agentd.doctor.finding import Finding
from agentd.hub.faults import Action, Point, Rule
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from tests.tcp import tcp_server

CERTIFICATE = Path(__file__).parent.parent / "transport" / "self_signed.pem"


def told(findings: list[Finding]) -> dict[tuple[str, str], str]:
    return {(each.check, each.about): each.state for each in findings}


def settings(url: str, *names: str) -> Settings:
    return Settings(identity={name: Identity(url=url, key=KeySource(env=f"KEY_{name}")) for name in names})


async def test_a_healthy_identity_passes_every_check_and_its_mail_stays_with_the_server() -> None:
    async with Hub() as hub:
        keys = {"KEY_alice": hub.create_agent("alice")}
        hub.create_agent("bob")
        hub.post("bob", "alice", "one", "two")
        findings = await network.identities(settings(hub.url, "alice"), {"alice": "alice"}, keys)
        assert {each.state for each in findings} == {OK}, findings
        checks = [each.check for each in findings]
        assert checks == ["DNS", "TCP", "TLS", "clock", "account", "HELLO", "sync"]
        assert findings[-1].told == "2 messages wait on its first page"
        assert hub.undelivered("alice") == 2


async def test_a_refused_key_an_unset_one_and_a_wrong_account_are_told() -> None:
    async with Hub() as hub:
        keys = {"KEY_a": "ac_live_nobody_has_this_key", "KEY_c": hub.create_agent("carol")}
        findings = await network.identities(settings(hub.url, "a", "b", "c"), {"c": "dave"}, keys)
    state = told(findings)
    assert state["account", "a"] == state["key", "b"] == state["account", "c"] == FAIL
    assert "holds @dave's mail" in next(each.told for each in findings if each.about == "c")
    assert "nobody_has_this_key" not in str(findings)


async def test_two_identities_of_one_account_are_told() -> None:
    async with Hub() as hub:
        key = hub.create_agent("alice")
        findings = await network.identities(settings(hub.url, "a", "b"), {}, {"KEY_a": key, "KEY_b": key})
    assert [each.about for each in findings if each.state == FAIL] == ["b"]


async def test_a_platform_in_trouble_is_told_for_each_step() -> None:
    async with Hub() as hub:
        keys = {"KEY_alice": hub.create_agent("alice")}
        hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="sync", times=9))
        findings = await network.identities(settings(hub.url, "alice"), {}, keys)
    assert told(findings)["HELLO", "alice"] == OK
    assert told(findings)["sync", "alice"] == FAIL


async def test_a_server_that_is_not_there_is_told_once_and_its_identities_are_left_out(
    unused_tcp_port: int,
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    findings = await network.identities(settings(url, "a", "b"), {}, {})
    assert told(findings) == {
        ("DNS", f"127.0.0.1:{unused_tcp_port}"): OK,
        ("TCP", f"127.0.0.1:{unused_tcp_port}"): FAIL,
    }


async def test_a_name_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = await network.server("https://no-such-host.invalid", 5.0)
    assert (finding.check, finding.state) == ("DNS", FAIL)
    assert finding.remedy


def serving(certificate: bool) -> AbstractAsyncContextManager[int]:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    return tcp_server(hang_up, tls=context)


async def test_a_certificate_that_nobody_vouches_for_is_told_with_the_reason() -> None:
    async with serving(certificate=True) as port:
        finding = (await network.server(f"https://127.0.0.1:{port}", 5.0))[-1]
    assert (finding.check, finding.state) == ("TLS", FAIL)
    assert "not trusted" in finding.told
    assert "SSL_CERT_FILE" in finding.remedy


async def test_a_server_that_speaks_no_tls_is_told() -> None:
    async with serving(certificate=False) as port:
        finding = (await network.server(f"https://127.0.0.1:{port}", 5.0))[-1]
    assert (finding.check, finding.state) == ("TLS", FAIL)


async def test_a_trusted_certificate_tells_its_days(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    context.check_hostname = False
    monkeypatch.setattr(network, "tls_context", lambda: context)
    async with serving(certificate=True) as port:
        finding = (await network.server(f"https://127.0.0.1:{port}", 5.0))[-1]
    assert finding.state in (OK, WARN)
    assert "certificate good for" in finding.told


async def test_behind_a_proxy_the_way_to_it_is_looked_at_and_its_password_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(certificate=False) as port:
        monkeypatch.setenv("https_proxy", f"http://user:s3cret-word@127.0.0.1:{port}")
        findings = await network.server("https://api.agentchat.me", 5.0)
    assert told(findings) == {("DNS", f"proxy 127.0.0.1:{port}"): OK, ("TCP", f"proxy 127.0.0.1:{port}"): OK}
    assert "s3cret-word" not in str(findings)


@pytest.mark.parametrize(
    ("ahead_s", "state", "word"),
    [(0, OK, "agrees"), (20, WARN, "behind"), (-20, WARN, "ahead"), (3_600, FAIL, "behind")],
)
async def test_the_clock_is_compared_with_the_servers_date(ahead_s: int, state: str, word: str) -> None:
    async def me(request: web.Request) -> web.Response:
        body = {"handle": "alice", "created_at": "2026-01-02T03:04:05Z", "status": "active"}
        return web.Response(
            text=json.dumps(body),
            content_type="application/json",
            headers={"Date": formatdate(time.time() + ahead_s, usegmt=True)},
        )

    application = web.Application()
    application.router.add_get("/v1/agents/me", me)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        config = settings(f"http://127.0.0.1:{port}", "alice")
        findings = await network.identities(config, {}, {"KEY_alice": "ac_live_0123456789"})
    finally:
        await runner.cleanup()
    [clock] = [each for each in findings if each.check == "clock"]
    assert (clock.state, word in clock.told) == (state, True)


async def test_beside_a_running_daemon_it_takes_nothing_away(tmp_path: Path) -> None:
    """Mail that comes while the doctor looks is handled by the daemon, once, and answered once."""
    from agentd.doctor import examine

    async with Proof(tmp_path, 1) as proof:
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        environ: dict[str, str] = {}
        looking = asyncio.create_task(asyncio.to_thread(examine, tmp_path / "agentd.toml", environ))
        while not looking.done():
            proof.hub.post("peer", proof.identities[0], "while it looks")
            await asyncio.sleep(0.02)
        findings = await looking
        assert [each for each in findings if each.state == FAIL] == []
        assert ("state", proof.identities[0]) in told(findings)
        assert await proof.until_answered(30)
        assert proof.verdict().clean, proof.verdict()
        assert proof.verdict().handled_again == 0
        assert await proof.stop() == 0


async def test_a_hub_without_acks_is_something_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    class Link:
        acks = False

    class Dialled:
        async def __aenter__(self) -> Link:
            return Link()

        async def __aexit__(self, *_: Any) -> None:
            return None

    monkeypatch.setattr(network, "dial", lambda *_, **__: Dialled())
    async with Hub(HubSettings()) as hub:
        keys = {"KEY_alice": hub.create_agent("alice")}
        findings = await network.identities(settings(hub.url, "alice"), {}, keys)
    assert told(findings)["HELLO", "alice"] == WARN
