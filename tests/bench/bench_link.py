"""Receiving and acking: the link with acks in bursts, beside the plain library with recv() and one send() per ack.

Run `python tests/bench/bench_link.py [--frames N] [--rounds N]`. The server is a child process on another core; the
figures are CPU of the client and the rate at which the server saw its acks, medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from agentd.config import Link as LinkSettings
from agentd.core.reconnect import CloseMeaning
from agentd.transport.link import dial
from agentd.wire.platform import Hello

HELLO, HELLO_OK = b'{"type":"hello"}', b'{"type":"hello.ok","capabilities":["ack"]}'
MESSAGE = (b'{"type":"message.new","payload":{"id":"msg_0123456789abcdef","text":"' + b"x" * 380 + b'"}}').ljust(450)
ACK = b'{"type":"ack","message_id":"msg_0123456789abcdef"}'
IN_FLIGHT = 2_000  # frames that the server sends ahead of the acks: a window, so that no buffer is what is measured


class CountingConnection(ServerConnection):
    """A server's end that sends and counts by plain calls, so that it is never the slower one."""

    left = 0
    unacked = 0

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode is not Opcode.TEXT:
            super().process_event(event)
        elif event.data == HELLO:
            self.protocol.send_text(HELLO_OK)
            self.push()
        else:
            self.unacked -= 1
            if self.unacked <= IN_FLIGHT // 2:
                self.push()

    def push(self) -> None:
        count = min(self.left, IN_FLIGHT - self.unacked)
        self.left -= count
        self.unacked += count
        frame = Frame(Opcode.TEXT, MESSAGE).serialize(mask=False)
        self.transport.write(b"".join(self.protocol.data_to_send()) + frame * count)
        if not self.left and not self.unacked and self.protocol.state is State.OPEN:
            self.protocol.send_close(1000)
            self.send_data()


async def serve_forever(frames: int) -> None:
    CountingConnection.left = frames

    async def stay(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serve(stay, "127.0.0.1", 0, compression=None, create_connection=CountingConnection) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.Event().wait()


class Platform:
    """As little as a link needs; no frame is decoded, so that only the transport is measured."""

    def __init__(self, url: str) -> None:
        self.url = url

    def link_url(self) -> str:
        return self.url

    def hello(self) -> bytes:
        return HELLO

    def decode(self, frame: str | bytes) -> Hello:
        return Hello(acks=True)

    def close_meaning(self, code: int | None, reason: str) -> CloseMeaning:
        return CloseMeaning.AGAIN


async def through_the_link(url: str) -> int:
    received = 0
    acks: list[bytes] = []

    def on_frame(_: bytes) -> None:
        nonlocal received
        received += 1
        acks.append(ACK)

    def on_burst() -> None:
        assert link.send_burst(acks)
        acks.clear()

    async with dial(Platform(url), LinkSettings(), on_frame=on_frame, on_burst=on_burst) as link:
        await link.closed()
    return received


async def through_the_library(url: str) -> int:
    received = 0
    async with connect(url, compression=None, max_queue=1_024) as connection:
        await connection.send(HELLO, text=True)
        await connection.recv(decode=False)
        async for _ in connection:
            received += 1
            await connection.send(ACK, text=True)
    return received


def measured(
    client: Callable[[str], Awaitable[int]],
    url: str,
    frames: int,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> tuple[float, float]:
    """One round: frames per second of wall time, and µs of CPU per frame."""

    async def run() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        assert await client(url) == frames
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return frames / wall, cpu / frames * 1e6

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run())


def pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--frames", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.serve:
        pin(1)
        uvloop.run(serve_forever(chosen.frames))
        return
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--frames", str(chosen.frames)], stdout=subprocess.PIPE, text=True
    )
    pin(0)
    try:
        assert server.stdout is not None
        url = f"ws://127.0.0.1:{int(server.stdout.readline())}/"
        print(f"{'client':<44}{'frames/s':>10}{'µs CPU/frame':>15}")
        for name, client in (
            ("link, acks of a read in one write", through_the_link),
            ("websockets recv(), one send() per ack", through_the_library),
        ):
            for loop_name, new_loop in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
                rounds = [measured(client, url, chosen.frames, new_loop) for _ in range(chosen.rounds)]
                rate, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(f"{name + ', ' + loop_name:<44}{rate:>10,.0f}{cpu:>15.1f}", flush=True)
    finally:
        server.terminate()
        server.communicate()


if __name__ == "__main__":
    main()
