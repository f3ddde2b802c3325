"""How long a far end asks us to wait."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from agentd.wire.platform import wait_asked_for

_SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds from `now` (Unix seconds) that a Retry-After header asks for, within reason (wire.platform).

    None if there is none, if it is unreadable or over. Source: RFC 9110, 10.2.3: whole seconds or an HTTP date.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return wait_asked_for(float(text))
    try:
        date = parsedate_to_datetime(text)
        return wait_asked_for(date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None
