"""Notices when something blocks the event loop, while it does, and says what.

A thread asks the loop to answer; an answer that is late means that nothing else runs either: no pong, no other
handler. The loop thread's stack at that moment names the culprit.

Always true: each stall is logged twice: with its stack once it is noticed, and with its length when it ends. Handlers
cost nothing for it: they are recognised on the stack.
Not here: ending a stall. A thread cannot be interrupted; moving the work into a `def` handler is the author's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import CodeType, FrameType, TracebackType

from agentd import logs, metrics

log = logging.getLogger("agentd.host.stalls")

_STACK_MAX_CHARS = 8_000


class StallWatch:
    """Watches the loop it is entered on. Use as a context manager.

    stall_s: an answer later than this is a stall. names: what to call a piece of code when it is found on the stack,
    as "plugin greeter, handler greet". stalls: how many there have been; stalled_s: how long in all, counted at the
    end of each.
    """

    def __init__(self, stall_s: float, names: Mapping[CodeType, str]) -> None:
        self.stalls = 0
        self.stalled_s = 0.0
        self._stall_s = stall_s
        self._names = names
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StallWatch:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._watch, args=(loop, threading.get_ident()), name="agentd-stalls", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        while not self._stopped.wait(self._stall_s / 2):
            answered = threading.Event()
            asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop was closed
                return
            if not answered.wait(self._stall_s):
                self._stalled(loop, loop_thread, answered, asked_at)

    def _stalled(
        self, loop: asyncio.AbstractEventLoop, loop_thread: int, answered: threading.Event, asked_at: float
    ) -> None:
        if self._stopped.is_set():  # leaving waits for this thread, and blocks the loop for as long
            return
        self.stalls += 1
        culprit, stack = self._seen(loop_thread)
        log.warning("event loop blocked for more than %g s by %s\n%s", self._stall_s, culprit, stack)
        while not answered.wait(self._stall_s):
            if self._stopped.is_set():
                return
        length_s = time.monotonic() - asked_at
        self.stalled_s += length_s
        log.warning("event loop runs again after %.2f s (%s)", length_s, culprit)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(metrics.LOOP_STALLS.inc)

    def _seen(self, loop_thread: int) -> tuple[str, str]:
        frame = sys._current_frames().get(loop_thread)
        if frame is None:
            return "nothing: its thread has ended", ""
        stack = "".join(traceback.format_stack(frame))
        return self._culprit(frame), logs.redacted(stack[-_STACK_MAX_CHARS:])

    def _culprit(self, frame: FrameType | None) -> str:
        while frame is not None:
            name = self._names.get(frame.f_code)
            if name is not None:
                return name
            frame = frame.f_back
        return "agentd itself"
