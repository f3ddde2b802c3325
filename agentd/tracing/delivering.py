"""Carries spans to the collector, from a thread of its own.

OpenTelemetry's own BatchSpanProcessor neither tells how many spans it had to drop nor ends by a deadline, so this takes
its place; what is sent, and how it is repeated, is OpenTelemetry's exporter's.

Always true: whoever hands a span in never waits. At most `queue_max` spans wait; what comes beyond is lost and
counted, as is what the collector did not take. A collector that does not answer is told of once in a while, not once
per batch.
What a plugin put into its own spans leaves without the keys that the log would not show either.
Not here: which spans there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from opentelemetry.util.types import AttributeValue

from agentd import logs

log = logging.getLogger("agentd.tracing")

_BATCH = 512  # OpenTelemetry's own figure
_SAY_AGAIN_S = 300.0
_THEIRS = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Delivery(SpanProcessor):
    """`close` in the end. where: the collector, for people. own_scope: whose spans hold nothing that needs a look.

    delivered, lost: how many spans. failing_since: monotonic seconds, None while the collector takes what it gets.
    """

    def __init__(
        self, make_exporter: Callable[[], SpanExporter], where: str, *, queue_max: int, every_s: float, own_scope: str
    ) -> None:
        self._where = where
        self._queue_max = queue_max
        self._every_s = every_s
        self._own_scope = own_scope
        self._queue: deque[ReadableSpan] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = self._given_up = False
        self._said = False
        self._said_at = float("-inf")
        self._told = _Told()
        self._under_way = 0
        self.delivered = 0
        self.lost = 0
        self.failing_since: float | None = None
        logging.getLogger(_THEIRS).addFilter(self._told)
        self._exporter = make_exporter()
        self._ended: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Spans that the collector has not been offered yet."""
        return len(self._queue)

    @property
    def reason(self) -> str:
        """Why the collector does not take them, or ""."""
        return "" if self.failing_since is None else logs.redacted(self._told.last)

    # --- in

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """See SpanProcessor."""

    def on_end(self, span: ReadableSpan) -> None:
        """See SpanProcessor. From any thread."""
        its = span.get_span_context()
        if its is None or not its.trace_flags.sampled:
            return
        with self._lock:
            if self._closing or len(self._queue) >= self._queue_max:
                self.lost += 1
                return
            self._queue.append(span)
        if len(self._queue) >= _BATCH:
            self._wake.set()

    def shutdown(self) -> None:
        """See SpanProcessor; `close` is what ends it."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See SpanProcessor. What waits is delivered soon anyway."""
        self._wake.set()
        return True

    # --- out

    def _run(self) -> None:
        # Else the spans of a plugin that traces `requests` would tell of their own delivery. It has no public name.
        context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True))
        while not self._closing:
            self._wake.wait(self._every_s)
            self._wake.clear()
            self._deliver()
        self._deliver()
        self._ended()

    def _deliver(self) -> None:
        while self._queue and not self._given_up:
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                self._under_way = len(batch)
            taken = self._export(batch)
            with self._lock:
                if self._given_up:  # which has counted it
                    return
                self._under_way = 0
                if taken:
                    self.delivered += len(batch)
                else:
                    self.lost += len(batch)
            self._tell(taken)
            if not taken and self._closing:
                return

    def _export(self, batch: list[ReadableSpan]) -> bool:
        try:
            return self._exporter.export([self._clean(span) for span in batch]) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever it is, events go on
            self._told.last = repr(error)
            return False

    def _tell(self, taken: bool) -> None:
        now = time.monotonic()
        if taken:
            self.failing_since = None
            if self._said:
                self._said = False
                log.info("the collector of traces takes spans again: %s", self._where)
            return
        self.failing_since = self.failing_since or now
        # Also one that comes and goes is told of no more often.
        if now - self._said_at >= _SAY_AGAIN_S:
            self._said_at, self._said = now, True
            log.warning(
                "the collector of traces at %s takes no spans (%s): %d are lost so far; mail is not affected",
                self._where,
                self._told.last or "it does not say why",
                self.lost,
            )

    # --- the end

    async def close(self, timeout_s: float) -> None:
        """Deliver what waits, and give up after so long."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                loop.call_soon_threadsafe(over.set)

        self._ended = ended
        with self._lock:
            self._closing = True
        self._wake.set()
        if not self._thread.is_alive():
            over.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await over.wait()
        with self._lock:
            self._given_up = True
            left = len(self._queue) + self._under_way
            self.lost += left
        self._exporter.shutdown()  # which ends its waiting before the next try, too
        if left:
            log.warning("%d spans were not delivered before the end", left)
        logging.getLogger(_THEIRS).removeFilter(self._told)

    # --- what plugins say

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        """A span of a plugin, which may hold anything, without keys."""
        scope = span.instrumentation_scope
        if scope is not None and scope.name == self._own_scope:
            return span
        return ReadableSpan(
            name=logs.redacted(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=_redacted(span.attributes),
            events=[
                Event(logs.redacted(each.name), _redacted(each.attributes), each.timestamp) for each in span.events
            ],
            links=span.links,
            kind=span.kind,
            status=Status(span.status.status_code, _redacted_text(span.status.description)),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=scope,
        )


class _Told(logging.Filter):
    """Keeps what the exporter would log, which is something for every batch, and lets none of it through."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.last = record.getMessage()
        return False


def _redacted(attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    return {logs.redacted(name): _redacted_value(value) for name, value in (attributes or {}).items()}


def _redacted_value(value: Any) -> Any:
    if isinstance(value, str):
        return logs.redacted(value)
    if isinstance(value, (list, tuple)):
        return [_redacted_value(each) for each in value]
    return value


def _redacted_text(text: str | None) -> str | None:
    return None if text is None else logs.redacted(text)
