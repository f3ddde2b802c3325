"""A Chromium for the tests of the page, and where their pictures go.

AGENTD_SCREENSHOTS names a folder for pictures to look at; without it they go to the test's own and away.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
DESK, PHONE = (1280, 900), (360, 740)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true",
    reason="Chromium is not installed; on Debian and Ubuntu: apt-get install -y chromium",
)


def picture(tab: Tab, folder: Path, name: str) -> None:
    folder = Path(os.environ.get("AGENTD_SCREENSHOTS", folder))
    tab.screenshot(path=str(folder / f"{name}.png"), full_page=not tab.locator("dialog[open]").count())


def focused(tab: Tab) -> str:
    """What the keyboard is at, by its label or its text."""
    at = "document.activeElement"
    return str(tab.evaluate(f"{at}.getAttribute('aria-label') ?? {at}.id"))
