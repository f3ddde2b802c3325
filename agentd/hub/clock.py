"""The hub's two ways of telling the time: instants as the wire writes them, and Unix seconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def unix_s() -> float:
    """Seconds since 1970, for what the hub computes with."""
    return time.time()


def instant(at_s: float | None = None) -> str:
    """ISO 8601 in UTC with milliseconds, as AgentChat writes it: now, or the Unix seconds given."""
    moment = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
