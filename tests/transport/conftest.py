from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentd.transport.tls import tls_context

from .far_end import Far, Script, StartFarEnd


@pytest.fixture
async def far_end() -> AsyncIterator[StartFarEnd]:
    """Start a far end that plays a script on every connection; gives its port. What a script raises fails the test."""
    servers: list[asyncio.Server] = []
    playing: set[asyncio.Task[None]] = set()
    failures: list[Exception] = []

    async def start(script: Script, *, tls: ssl.SSLContext | None = None) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            playing.add(task)
            try:
                await script(Far(reader, writer))
            except (ConnectionError, EOFError):
                pass  # the near end may leave when it likes; what it did is for the test to see
            except asyncio.CancelledError:
                pass  # the test is over
            except Exception as exc:
                failures.append(exc)
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
    for task in playing:
        task.cancel()
    if playing:
        await asyncio.wait(playing)
    assert not failures, failures


@pytest.fixture
def self_signed() -> Path:
    return Path(__file__).with_name("self_signed.pem")


@pytest.fixture
def self_signed_server(self_signed: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed)
    return context


@pytest.fixture
def trusted(self_signed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator's own authority, named the usual way."""
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()
