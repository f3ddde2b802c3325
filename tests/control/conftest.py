"""The page in a real Chromium, over a daemon that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.control.browsing import CHROMIUM, DESK, FLAGS
from tests.control.pages import Page

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "Chromium is not installed; on Debian and Ubuntu: apt-get install -y chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "state").mkdir()
    served = Page(tmp_path / "state")
    yield served
    served.close()


@pytest.fixture
def visit(browser: Browser, page: Page) -> Callable[..., Any]:
    """Opens the page by a link that works once. Afterwards: no request went elsewhere, and nothing failed on it."""

    @contextmanager
    def visit(size: tuple[int, int] = DESK, scheme: str = "light", **options: Any) -> Iterator[Tab]:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            locale="en-GB",
            **options,
        )
        tab = context.new_page()
        tab.set_default_timeout(8_000)
        elsewhere: list[str] = []
        failures: list[str] = []
        own = page.url  # also once it has gone
        tab.on("request", lambda request: request.url.startswith(own) or elsewhere.append(request.url))
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.on(
            "console",
            lambda told: (
                told.type == "error" and "Failed to load resource" not in told.text and failures.append(told.text)
            ),
        )
        try:
            tab.goto(f"{page.url}/#{page.invitation()}")
            tab.wait_for_selector("#part-health")
            tab.wait_for_load_state()  # before its script has run, a button does nothing
            yield tab
        finally:
            context.close()
        assert elsewhere == []
        assert failures == []

    return visit
