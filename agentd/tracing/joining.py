"""What the spans that a plugin makes itself join: the span of its turn.

In the process of an isolated plugin that span is the daemon's, known by its traceparent. Exporting what joins it there
is the plugin's: the collector's headers are the daemon's, and stay there.

Not here: OpenTelemetry's SDK, which a worker does not need for this.
"""

from __future__ import annotations

from opentelemetry import context, trace
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_TRACEPARENT = TraceContextTextMapPropagator()


class Joined:
    """See observing.Joins."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """See observing.Joins."""
        carrier: dict[str, str] = {}
        _TRACEPARENT.inject(carrier, trace.set_span_in_context(self._span, context.Context()))
        return carrier["traceparent"]

    def enter(self) -> None:
        """See observing.Joins."""
        # For good: the context variables of a turn are forgotten with it.
        context.attach(trace.set_span_in_context(self._span))


def joined(traceparent: str) -> Joined:
    """What `traceparent` names."""
    return Joined(trace.get_current_span(_TRACEPARENT.extract({"traceparent": traceparent}, context.Context())))
