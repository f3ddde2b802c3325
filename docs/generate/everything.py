"""Which file is made by what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agentd.control.metrics_page import page as metrics
from docs.generate.configuration import configuration
from docs.generate.control_api import control_api
from docs.generate.manual import manual

DOCS = Path(__file__).parent.parent

PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "agentd.8": manual,
    DOCS / "configuration.md": configuration,
    DOCS / "control-api.md": control_api,
    DOCS / "metrics.md": metrics,
}
