"""Moments as text: ISO 8601 in UTC, to the millisecond.

Always true: what is read back differs by less than a millisecond.
"""

from __future__ import annotations

from datetime import UTC, datetime


def iso(unix_s: float) -> str:
    """A moment as ISO 8601, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix(moment: str) -> float:
    """Unix seconds of an ISO 8601 moment; without a zone it is UTC. Raises ValueError for anything else."""
    when = datetime.fromisoformat(moment)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
