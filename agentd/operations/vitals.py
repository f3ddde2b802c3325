"""What the daemon notices of itself: whether it sheds and since when, how late its loop is, where its log stands.

Not here: what that means for mail (core/health).
"""

from __future__ import annotations

from typing import Any

from agentd import metrics
from agentd.core.health import Lags, Pressure


class Vitals:
    """One daemon's. Times are monotonic seconds. http_url: of the page, while there is one. position: of the log."""

    def __init__(self, period_s: float, window_s: float) -> None:
        self._lags = Lags(period_s, window_s)
        self._pressure = Pressure()
        self.http_url: str | None = None
        self.position = 0

    def press(self, reason: str, pressed: bool, now: float) -> str:
        """There is this reason to shed, or is not any more. Returns all there are, or ""."""
        self._pressure.press(reason, pressed, now)
        return self.shedding

    @property
    def shedding(self) -> str:
        """Why messages of all identities are left with the server, or ""."""
        return self._pressure.why

    def slept(self, now: float) -> None:
        """Somebody goes to sleep for `period_s`."""
        self._lags.slept(now)

    def woke(self, now: float) -> None:
        """And wakes."""
        metrics.LOOP_LAG_SECONDS.observe(self._lags.woke(now))

    def status(self, now: float) -> dict[str, Any]:
        """See control.api.Daemon."""
        lag_at, lag_s = self._lags.worst(now)
        return {
            "http_url": self.http_url,
            "position": self.position,
            "shedding": self.shedding,
            "shedding_s": self._pressure.age_s(now),
            "loop_lag_s": round(lag_s, 3),
            "loop_lag_age_s": round(now - lag_at, 3),
        }
