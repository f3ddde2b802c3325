"""A plain TCP server for what a real one would never send."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@asynccontextmanager
async def tcp_server(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve every connection by `serve`, and close it then; gives the port.

    At the end no connection is left, also of those that had more to write than their far side read. The far side may
    leave when it likes; what else `serve` raises fails the test.
    """
    serving: list[tuple[asyncio.Task[object], asyncio.StreamWriter]] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append((asyncio.create_task(connection(reader, writer)), writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    # Asked only after close(), Python 3.11 would say at once that nothing is open.
    closed = asyncio.create_task(server.wait_closed())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task, writer in serving:
            task.cancel()
            writer.transport.abort()
        results = await asyncio.gather(*(task for task, _ in serving), return_exceptions=True)
        await closed
    failures = [each for each in results if isinstance(each, Exception) and not isinstance(each, (OSError, EOFError))]
    assert not failures, failures
