from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agentd.transport.tls import tls_context
from tests.tcp import tcp_server

from .far_end import Far, Script, StartFarEnd


@pytest.fixture
async def far_end() -> AsyncIterator[StartFarEnd]:
    """Start a far end that plays a script on every connection; gives its port. What a script raises fails the test."""
    async with AsyncExitStack() as stack:

        async def start(script: Script, *, tls: ssl.SSLContext | None = None) -> int:
            async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await script(Far(reader, writer))

            return await stack.enter_async_context(tcp_server(play, tls=tls))

        yield start


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
