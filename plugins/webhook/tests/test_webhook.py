"""What a receiver gets, and what becomes of its answers: against a server on real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from agentd_webhook import _asked_s, plugin, signature
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agentd.testing import ConfigError, Harness, PluginLoadError

README = (Path(__file__).parent.parent / "README.md").read_text()
SECRET = "0123456789abcdef0123456789abcdef"


class Receiver:
    """Answers what the test put there, the last one again and again; remembers what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[Callable[[], Awaitable[web.Response]]] = []
        self.url = ""

    def will(self, status: int = 200, **how: Any) -> None:
        async def answer() -> web.Response:
            return web.Response(status=status, **how)

        self.answers.append(answer)

    def will_say(self, said: object) -> None:
        self.will(text=json.dumps(said), content_type="application/json")

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture
def serving(receiver: Receiver, tmp_path: Path) -> Callable[..., Harness]:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(f"{SECRET}\n")

    def make(attempts: int = 5, timeout_s: float = 60.0, **settings: Any) -> Harness:
        given = {"url": receiver.url, "secret": {"file": str(secret)}, **settings}
        return Harness(plugin, given, attempts=attempts, timeout_s=timeout_s)

    return make


# the request


async def test_a_message_is_posted_whole_under_a_signature_that_the_readmes_check_accepts(
    serving: Callable[..., Harness], receiver: Receiver
) -> None:
    receiver.will(204)
    async with serving(headers={"X-Team": "blue"}) as h:
        await h.message("hello\nthere", sender="@bob", data={"n": 1})
        assert h.pending == 0
        assert h.sent == []
    [(headers, body)] = receiver.got
    event = json.loads(body)
    assert (event["type"], event["sender"], event["text"], event["data"]) == (
        "Message",
        "bob",
        "hello\nthere",
        {"n": 1},
    )
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Team"] == "blue"
    assert headers["Agentd-Attempt"] == "1"
    checks: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], checks)
    is_genuine = checks["is_genuine"]
    assert is_genuine(SECRET.encode(), headers["Agentd-Signature"], body)
    assert not is_genuine(SECRET.encode(), headers["Agentd-Signature"], body + b" ")
    assert not is_genuine(b"another" * 5, headers["Agentd-Signature"], body)


async def test_every_attempt_carries_the_same_delivery_and_other_messages_another(
    serving: Callable[..., Harness], receiver: Receiver
) -> None:
    receiver.will(503)
    receiver.will(200)
    async with serving() as h:
        await h.message("a")
        await h.advance(3)
        await h.message("b")
    first, again, other = (headers for headers, _ in receiver.got)
    assert [each["Agentd-Attempt"] for each in (first, again, other)] == ["1", "2", "1"]
    assert first["Agentd-Delivery"] == again["Agentd-Delivery"] != other["Agentd-Delivery"]


async def test_a_crash_before_the_commit_posts_again_under_the_same_delivery_and_replies_once(
    serving: Callable[..., Harness], receiver: Receiver
) -> None:
    receiver.will_say({"reply": "hello"})
    async with serving() as h:
        h.crash_after_handler()
        await h.message("a")
        assert h.texts == ["hello"]
    first, again = (headers["Agentd-Delivery"] for headers, _ in receiver.got)
    assert first == again


async def test_of_a_group_only_what_mentions_us_if_so_configured(
    serving: Callable[..., Harness], receiver: Receiver
) -> None:
    receiver.will(200)
    async with serving(messages="addressed") as h:
        await h.message("among you", direct=False)
        await h.message("mine", own=True)
        await h.message("@me", direct=False, mentioned=True)
    assert [json.loads(body)["text"] for _, body in receiver.got] == ["@me"]


# the answer


async def test_an_answer_in_json_says_what_is_to_be_said(serving: Callable[..., Harness], receiver: Receiver) -> None:
    receiver.will_say(json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0]))
    async with serving() as h:
        await h.message("hi", sender="@ann")
        assert [(send.target, send.content.text, send.content.data) for send in h.sent] == [
            ("@ann", "hello", None),
            ("@ann", "more", None),
            ("@ann", "and more", {"n": 1}),
            ("@bob", "alice wrote", None),
        ]
        assert h.sent[2].content.metadata["k"] == "v"


@pytest.mark.parametrize(
    "how",
    [
        {"text": '{"reply": "as text"}'},
        {"text": "", "content_type": "application/json"},
        {"text": '{"ok": true}', "content_type": "application/json"},
    ],
)
async def test_an_answer_that_says_nothing_of_the_kind_is_enough(
    serving: Callable[..., Harness], receiver: Receiver, how: dict[str, Any]
) -> None:
    receiver.will(201, **how)
    async with serving() as h:
        await h.message("hi")
        assert (h.pending, h.sent) == (0, [])


@pytest.mark.parametrize("content", ["{", '{"reply": 5}', "[]", '{"reply": {}}'])
async def test_an_answer_that_cannot_be_read_is_a_failure(
    serving: Callable[..., Harness], receiver: Receiver, content: str
) -> None:
    receiver.will(text=content, content_type="application/json")
    async with serving() as h:
        await h.message("hi")
        assert len(h.failed) == 1
        assert h.sent == []


async def test_an_answer_without_end_is_a_failure(serving: Callable[..., Harness], receiver: Receiver) -> None:
    receiver.will_say({"reply": "x" * 5_000})
    async with serving(answer_max_bytes=1_000) as h:
        await h.message("hi")
        assert "longer than 1000 bytes (answer_max_bytes)" in h.failed[0].error


@pytest.mark.parametrize(("status", "headers", "delay_s"), [
    (429, {"Retry-After": "7"}, 7),
    (503, {"Retry-After": "100000"}, 600),
    (503, {"Retry-After": "0"}, 2),
    (500, {}, 2),
    (408, {}, 2),
    (503, {"Retry-After": "soon"}, 2),
])  # fmt: skip
async def test_too_many_and_server_errors_are_tried_again_when_the_receiver_asks(
    serving: Callable[..., Harness], receiver: Receiver, status: int, headers: dict[str, str], delay_s: float
) -> None:
    receiver.will(status, headers=headers)
    receiver.will_say({"reply": "at last"})
    async with serving() as h:
        await h.message("hi")
        assert h.failed[0].error == f"RetryLater: the receiver answered {status}"
        assert h.failed[0].not_before == h.clock.unix() + delay_s
        await h.advance(delay_s + 1)
        assert h.texts == ["at last"]


async def test_without_being_asked_the_delay_doubles(serving: Callable[..., Harness], receiver: Receiver) -> None:
    receiver.will(500)
    async with serving(retry_first_s=10, retry_max_s=25) as h:
        await h.message("hi")
        delays = []
        for _ in range(4):
            delays.append(h.failed[0].not_before - h.clock.unix())
            await h.advance(delays[-1])
    assert delays == [10, 20, 25, 25]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
async def test_any_other_refusal_is_a_dead_letter(
    serving: Callable[..., Harness], receiver: Receiver, status: int
) -> None:
    receiver.will(status)
    async with serving() as h:
        await h.message("hi")
        assert [dead.error for dead in h.dead] == [f"GiveUp: the receiver answered {status}"]


async def test_a_redirect_is_not_followed(serving: Callable[..., Harness], receiver: Receiver) -> None:
    receiver.will(307, headers={"Location": receiver.url})
    async with serving() as h:
        await h.message("hi")
        assert "redirects are not followed" in h.failed[0].error
    assert len(receiver.got) == 1


async def test_a_receiver_that_does_not_answer_in_time_is_asked_again(
    serving: Callable[..., Harness], receiver: Receiver
) -> None:
    never = asyncio.Event()

    async def hang() -> web.Response:
        await never.wait()
        return web.Response()

    receiver.answers.append(hang)
    receiver.will(200)
    async with serving(timeout_s=0.6) as h:
        await h.message("hi")
        assert h.failed[0].error == "RetryLater: no answer within 0.5 s"
        await h.advance(3)
        assert h.pending == 0
    never.set()


async def test_a_receiver_that_is_down_is_asked_again(serving: Callable[..., Harness], receiver: Receiver) -> None:
    async with serving(url="http://127.0.0.1:9/hook") as h:
        await h.message("hi")
        assert h.failed[0].error.startswith("RetryLater: the receiver cannot be reached: ClientConnectorError")


async def test_a_certificate_that_nobody_vouches_for_is_refused(serving: Callable[..., Harness]) -> None:
    import ssl

    pem = Path(__file__).parents[3] / "tests" / "transport" / "self_signed.pem"
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem)
    connected = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with serving(url=f"https://localhost:{port}/hook") as h:
            await h.message("hi")
            assert "CERTIFICATE_VERIFY_FAILED" in h.failed[0].error
    assert connected == 0


@given(st.floats(0, 1e6), st.integers(-1_000_000, 1_000_000))
def test_a_retry_after_may_be_a_date(now: float, ahead_s: int) -> None:
    at = 1_767_225_600 + ahead_s
    asked = _asked_s(format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True), 1_767_225_600 + now)
    assert asked == pytest.approx(max(0.0, ahead_s - now))


@given(st.text())
def test_a_retry_after_that_means_nothing_breaks_nothing(text: str) -> None:
    asked = _asked_s(text, time.time())
    assert asked is None or asked >= 0


# settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "http://agent.example/hook"}, r"config: url is plain http to another machine"),
        ({"url": "ftp://agent.example"}, r"config: url is not an http or https address"),
        ({"url": "https://me:pw@agent.example"}, r"config: url has a user or password"),
        ({"url": "https://["}, r"config: url is not an address"),
        ({"secret": SECRET}, r"config\.secret: expected a table, found text"),
        ({"secret": {}}, r"config\.secret: name one source"),
        ({"secret": {"file": "a", "env": "B"}}, r"config\.secret: name one source"),
        ({"secret": {"credential": "../../etc/passwd"}}, r"config\.secret: .*credential"),
        ({"retry": 3}, r"config\.retry: no such setting"),
    ],
)
async def test_wrong_settings_are_told_by_their_key(
    serving: Callable[..., Harness], settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"plugin\.webhook\.{problem}") as caught:
        async with serving(**settings):
            pass
    assert SECRET not in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1/x", "http://127.8.0.1/x", "http://[::1]:80/x", "https://agent.example"]
)
async def test_plain_http_is_for_this_machine(serving: Callable[..., Harness], url: str) -> None:
    async with serving(url=url):
        pass


async def test_a_secret_that_cannot_be_used_is_told_by_its_key(
    serving: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "open"
    opened.write_text(SECRET)
    opened.chmod(0o644)
    short = tmp_path / "short"
    short.touch(0o600)
    short.write_text("abc")
    for name in ("NOT_THERE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for source, problem in (
        ({"file": str(opened)}, "is open to other users"),
        ({"file": str(short)}, "is shorter than 16"),
        ({"file": str(tmp_path / "missing")}, "cannot be read"),
        ({"env": "NOT_THERE"}, "NOT_THERE is not set"),
        ({"credential": "hook"}, "CREDENTIALS_DIRECTORY is not set"),
    ):
        with pytest.raises(PluginLoadError, match=rf"plugin\.webhook\.config\.secret: .*{problem}"):
            async with serving(secret=source):
                pass
    with pytest.raises(PluginLoadError, match=r"plugin\.webhook\.config\.ca_file: .* no certificate"):
        async with serving(ca_file=str(short)):
            pass


async def test_a_secret_may_be_a_credential_that_systemd_placed(
    serving: Callable[..., Harness], receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "keys_hook").write_text(SECRET)
    (tmp_path / "keys_hook").chmod(0o440)
    receiver.will(200)
    async with serving(secret={"credential": "keys_hook"}) as h:
        await h.message("hi")
    [(headers, body)] = receiver.got
    at = int(re.findall(r"t=(\d+)", headers["Agentd-Signature"])[0])
    assert headers["Agentd-Signature"] == signature(SECRET.encode(), at, body)


async def test_a_secret_may_come_from_the_environment_and_shows_nowhere(
    serving: Callable[..., Harness],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    receiver.will(400)
    async with serving(secret={"env": "HOOK_SECRET"}) as h:
        await h.message("hi")
        shown = h.dead[0].error + h.dead[0].traceback
    assert SECRET not in caplog.text + shown
    assert all(SECRET not in str(got) for got in receiver.got)


def test_the_readme_tells_every_setting() -> None:
    told = [name for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert plugin.config is not None
    assert set(told) == set(plugin.config.__struct_fields__)
