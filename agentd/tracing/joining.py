"""In the process of an isolated plugin: the turn's span, which is the daemon's, is what its own spans join.

Not here: exporting them. The collector's headers are the daemon's, so a plugin in a process of its own brings its own
exporter.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentd.tracing.spans import Joined


def joined(traceparent: str) -> Joined:
    """What `traceparent` names."""
    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return Joined(trace.get_current_span(found))
