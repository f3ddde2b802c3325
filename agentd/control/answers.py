"""What answers are made of, on the control socket and for the page: JSON, refusals, and what is told bit by bit.

Always true: an answer has one head. What fails once that has left breaks the answer off, so that nobody takes what came
until then for all. Who asks for a change and goes away leaves none half made.
Not here: what is answered (api.py, http.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import orjson
from aiohttp import web

from agentd.control.refusal import ControlError
from agentd.errors import AgentdError

_DIGITS_MAX = 18  # what fits into a position on disk

T = TypeVar("T")

log = logging.getLogger(__name__)


def as_json(value: Any, status: int = 200) -> web.Response:
    """An answer that is whole."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # a name of a file that is no UTF-8 is no text to it
        body = json.dumps(value).encode()
    return web.Response(body=body, status=status, content_type="application/json")


def refusal(refused: ControlError) -> web.Response:
    """What cannot be done, and why."""
    return as_json({"code": refused.code, "message": refused.message, "remedy": refused.remedy}, status=refused.status)


def bad_request(message: str) -> ControlError:
    """What was asked makes no sense."""
    return ControlError(400, "BAD_REQUEST", message, "mend the request")


def whole_number(name: str, given: str) -> int:
    """A number in a query. Raises ControlError."""
    if not given.isdecimal() or len(given) > _DIGITS_MAX:
        raise bad_request(f"{name} must be a whole number of at most {_DIGITS_MAX} digits")
    return int(given)


async def whole(change: Awaitable[T]) -> T:
    """Carried out to its end also if who asked has gone: else what it put on disk would not be known in memory."""
    carried_out = asyncio.ensure_future(change)
    carried_out.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may wait for it
    return await asyncio.shield(carried_out)


async def streamed(request: web.Request, content_type: str, pieces: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Each piece as soon as it is there, until nobody listens any more."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await response.write(piece)
    except ConnectionResetError:
        pass  # the reader has gone
    except Exception as error:
        # Of an error of ours the text says it all, and a page asks again every few seconds.
        log.error("an answer broke off: %s", error, exc_info=None if isinstance(error, AgentdError) else error)
        if request.transport is not None:
            request.transport.abort()
    return response
