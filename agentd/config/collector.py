"""Where traces go: what [agentd.tracing] endpoint says, or the variables of OpenTelemetry.

Not here: whether they may go there (loader.py), sending them (agentd.tracing).
"""

from __future__ import annotations

from collections.abc import Mapping

from agentd.config.settings import Tracing

COLLECTOR = "http://127.0.0.1:4318"
"""Where OpenTelemetry expects one."""

_PATH = "/v1/traces"


def collector_of(tracing: Tracing, environ: Mapping[str, str]) -> str:
    """The address of the request, path included."""
    if not tracing.endpoint and (whole := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return whole
    base = tracing.endpoint or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or COLLECTOR
    return base if base.endswith(_PATH) else base.rstrip("/") + _PATH
