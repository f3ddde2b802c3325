"""What a REST call is answered with: a value as JSON, or an error in the platform's flat envelope."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import ErrorCode, Header


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer. body: JSON bytes, unless `content_type` says otherwise."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer whose body is the value as JSON."""
    return Answer(wire.encoder.encode(value), status, headers or {})


class ApiError(Exception):
    """A call that is refused. Raised anywhere in a route's work; becomes the error envelope."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {code}: {message}")

    def answer(self) -> Answer:
        """The envelope. Retry-After is written in whole seconds, as the platform does, and rounded up."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            body["details"] = self.details
        headers = {}
        if self.retry_after_s is not None:
            headers[str(Header.RETRY_AFTER)] = str(math.ceil(self.retry_after_s))
        return answer(body, self.status, headers)


def invalid(message: str) -> ApiError:
    """The call is not what the contract asks for."""
    return ApiError(400, ErrorCode.VALIDATION_ERROR, message)


def not_found(code: ErrorCode, message: str) -> ApiError:
    """There is no such thing, or the caller may not know of it: both look the same."""
    return ApiError(404, code, message)


def rate_limited(retry_after_s: float, what: str) -> ApiError:
    """The caller is too fast."""
    details = {"retry_after_ms": math.ceil(retry_after_s * 1000)}
    return ApiError(429, ErrorCode.RATE_LIMITED, f"Too many {what}", details, retry_after_s)
