"""Traces: what became of one event, from the frame that brought it to the answer that the platform took.

    observing.py   what the parts tell of an event on its way, a Protocol
    naming.py      the ids of a trace, derived from what it is about
    following.py   from what is told to spans: which events are open, and since when each of them waits for what
    spans.py       spans as OpenTelemetry has them
    delivering.py  to the collector, from a thread of its own
    tracer.py      these put together
    joining.py     the spans of a plugin become children, also in a process of its own

Always true: OpenTelemetry is imported here only, and only where the configuration asks for traces. Nothing here waits,
and nothing that fails here fails an event. No text, no payload and no key is in a span.
Not here: metrics, and where the parts tell (they have `Traces | None`, and ask only whether it is None).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agentd.tracing.observing import Joins, Traces, TurnTrace

if TYPE_CHECKING:
    from agentd.config import Tracing
    from agentd.tracing.tracer import Tracer

__all__ = ["Joins", "Traces", "TurnTrace", "open_tracer"]


def open_tracer(
    settings: Tracing,
    environ: Mapping[str, str],
    system_of: Callable[[str], str],
    proxy_for: Callable[[str], str | None],
) -> Tracer | None:
    """Begin to trace, if the configuration asks for it. system_of: the platform of an identity.

    Raises ConfigError where a header of the collector cannot be read.
    """
    if not settings.enabled or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    # Only here: nobody else pays for loading it, and a plain installation does not have it.
    from agentd.tracing.tracer import Tracer

    return Tracer(settings, environ, system_of, proxy_for)
