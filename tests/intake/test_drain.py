"""The drain against a scripted platform: where it ends, and what it never does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentd.errors import CredentialsRefused, WireViolation
from agentd.intake import Drain
from agentd.wire.platform import Request, Response
from tests.intake.rig import Bench, frame


def row(seq: int, delivery_id: str | None) -> dict[str, Any]:
    payload: dict[str, Any] = msgspec.json.decode(frame(seq))["payload"]
    return {**payload, "delivery_id": delivery_id}


def no_refusal(refused: CredentialsRefused) -> None:
    raise refused


async def drained(bench: Bench, pages: dict[str | None, list[Any]]) -> int:
    """What a drain makes of a server with these pages, by the cursor that each is asked for with."""

    async def sync(request: Request) -> Response:
        rows = pages.get(request.query.get("after"), [])
        return Response(status=200, headers={}, body=msgspec.json.encode(rows))

    await bench.intake.load()
    draining = asyncio.create_task(Drain(bench.intake, sync, on_credentials=no_refusal).drain())
    async with asyncio.timeout(10.0):
        while not draining.done():
            await bench.journal.sync()
    return await draining


async def test_pages_are_read_until_an_empty_one_however_short_they_are() -> None:
    bench = Bench()
    pages = {None: [row(1, "d1"), row(2, "d2")], "d2": [row(3, "d3")], "d3": [row(4, None), row(5, "d5")]}
    assert await drained(bench, pages) == 5
    assert [record.event.seq for record in bench.records] == [1, 2, 3, 4, 5]


async def test_a_server_whose_cursor_stands_still_is_not_read_for_ever() -> None:
    bench = Bench()
    page = [row(1, "d1"), row(2, "d2")]
    with pytest.raises(WireViolation, match="cursor"):
        await drained(bench, {None: page, "d2": page})
    assert [record.event.seq for record in bench.records] == [1, 2]
