"""Where the dispatcher's time comes from: the machine, or a test that moves it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Monotonic time, calendar time and one-shot timers."""

    def monotonic(self) -> float:
        """Seconds that never fall."""
        ...

    def unix(self) -> float:
        """Unix seconds."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on the running loop at a monotonic time. Returns what cancels it."""
        ...


class LoopClock:
    """The real time."""

    monotonic = staticmethod(time.monotonic)
    unix = staticmethod(time.time)

    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - time.monotonic()), callback).cancel
