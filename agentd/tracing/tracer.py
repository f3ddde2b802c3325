"""What traces, put together: who follows events, spans, the way to the collector.

Not here: when it begins and ends (daemon).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from agentd import logs
from agentd.config import Tracing, collector_of, resolve_header
from agentd.tracing.delivering import Delivery
from agentd.tracing.following import Follower
from agentd.tracing.spans import SCOPE, OtelSpans

_KEY_MIN_CHARS = 8  # shorter words of a header, such as "Basic", are no secret


class Tracer:
    """One process's. traces: who is told. `close` in the end."""

    def __init__(
        self,
        settings: Tracing,
        environ: Mapping[str, str],
        system_of: Callable[[str], str],
        proxy_for: Callable[[str], str | None],
    ) -> None:
        self._flush_timeout_s = settings.flush_timeout_s
        self._where = collector_of(settings, environ)
        headers = {name: resolve_header(source, environ).reveal() for name, source in settings.headers.items()}
        _conceal_headers(environ)
        self._delivery = Delivery(
            partial(
                OTLPSpanExporter,
                endpoint=self._where,
                headers=headers,
                timeout=settings.timeout_s,
                session=_session(proxy_for(self._where)),
            ),
            self._where,
            queue_max=settings.queue_max,
            every_s=settings.every_s,
            own_scope=SCOPE,
        )
        self.traces = Follower(OtelSpans(settings, self._delivery, environ), settings.open_max, system_of)

    def status(self) -> dict[str, Any]:
        """See control.api.Daemon."""
        delivery = self._delivery
        since = delivery.failing_since
        return {
            "endpoint": self._where,
            "delivered": delivery.delivered,
            "lost": delivery.lost,
            "waiting": delivery.waiting,
            "followed": len(self.traces),
            "given_up": self.traces.given_up,
            "failing_s": None if since is None else round(time.monotonic() - since, 3),
            "reason": delivery.reason,
        }

    async def close(self) -> None:
        """Deliver what waits; an end that waits for the collector waits no longer than configured."""
        await self._delivery.close(self._flush_timeout_s)


def _session(proxy: str | None) -> requests.Session:
    session = requests.Session()
    # Else it would look into ~/.netrc, and give plain text that is meant for this machine to a proxy.
    session.trust_env = False
    if proxy is not None:
        session.proxies = {"http": proxy, "https": proxy}
    return session


def _conceal_headers(environ: Mapping[str, str]) -> None:
    """The exporter reads these itself."""
    for variable in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for header in environ.get(variable, "").split(","):
            for word in unquote(header.partition("=")[2]).split():
                if len(word) >= _KEY_MIN_CHARS:
                    logs.conceal(word)
