"""How long a far end asks us to wait."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds from `now` (Unix seconds) that a Retry-After header asks for; None if there is none or it is unreadable.

    Source: RFC 9110, 10.2.3: whole seconds or an HTTP date. A date in the past is 0.0.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, OverflowError):
        return None
