"""`agentd dashboard`: a link that opens the page of a running daemon, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.pages import Page

# Where a browser would be started: remembers what it was called with, and what lay in the file.
BROWSER = """#!/bin/sh
echo "$@" > {folder}/arguments
cp "${{1#file://}}" {folder}/led
stat -c %a "${{1#file://}}" > {folder}/mode
"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    served = Page(tmp_path)
    yield served
    served.close()


@pytest.fixture
def daemon(served: Any, page: Page, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A control socket whose status names the page."""
    status = served.daemon.status
    told = {"http_url": page.url, "state_dir": str(page.state)}
    monkeypatch.setattr(served.daemon, "status", lambda: {**status(), **told})
    return served


def dashboard(daemon: Any, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", "dashboard", *words],
        env={**os.environ, "AGENTD_STATE": str(daemon.path.parent), **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


def lets_in(page: Page, link: str) -> bool:
    url, _, invitation = link.strip().partition("/#")
    assert url == page.url
    return page.ask("POST", "/session", {"invitation": invitation}, bare=True)[0] == 200


def test_it_prints_a_link_that_works_once(daemon: Any, page: Page) -> None:
    done = dashboard(daemon)
    assert (done.returncode, done.stderr) == (0, "This link works once, within two minutes.\n")
    assert lets_in(page, done.stdout)
    assert not lets_in(page, done.stdout)


def test_in_json_it_prints_the_link_and_nothing_else(daemon: Any, page: Page) -> None:
    assert lets_in(page, json.loads(dashboard(daemon, "--json").stdout)["url"])


def test_a_browser_gets_the_link_in_a_file_that_only_its_owner_can_read(
    daemon: Any, page: Page, tmp_path: Path
) -> None:
    program = tmp_path / "browser"
    program.write_text(BROWSER.format(folder=tmp_path))
    program.chmod(0o755)
    done = dashboard(daemon, "--open", BROWSER=str(program))
    assert done.returncode == 0, done.stderr
    invitation = done.stdout.strip().partition("#")[2]
    assert invitation not in (tmp_path / "arguments").read_text()
    assert done.stdout.strip() in (tmp_path / "led").read_text()
    assert (tmp_path / "mode").read_text() == "600\n"
    assert not Path((tmp_path / "arguments").read_text().strip().removeprefix("file://")).exists()


def test_where_the_page_is_off_it_says_how_to_turn_it_on(served: Any) -> None:
    done = dashboard(served)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'set [agentd.http] listen = "127.0.0.1:8788" in the configuration, and restart' in done.stderr


def test_who_cannot_read_the_token_is_told_who_could(daemon: Any, page: Page) -> None:
    (page.state / "http_token").unlink()
    done = dashboard(daemon)
    assert (done.returncode, done.stdout) == (69, "")
    assert "run this command as the daemon's user or as root" in done.stderr


def test_a_socket_gets_no_token_of_another_folders(
    daemon: Any, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "http_token").write_text("another daemon's")
    told = {**daemon.daemon.status(), "state_dir": str(theirs)}
    monkeypatch.setattr(daemon.daemon, "status", lambda: told)
    assert lets_in(page, dashboard(daemon).stdout), "the token beside the socket was sent"
    (theirs / "http_token").write_text(page.token)
    (page.state / "http_token").unlink()
    assert "http_token cannot be read" in dashboard(daemon).stderr
    runtime = dashboard(daemon, RUNTIME_DIRECTORY=str(daemon.path.parent), AGENTD_STATE="")
    assert lets_in(page, runtime.stdout), "a service's socket does not lie in its state folder"


def test_a_page_that_is_gone_is_told(daemon: Any, page: Page) -> None:
    url = page.url
    page.call(page.server.close())
    done = dashboard(daemon)
    assert (done.returncode, done.stdout) == (69, "")
    assert f"nothing usable answers at {url}" in done.stderr


def test_a_daemon_without_a_page_does_not_load_it(tmp_path: Path) -> None:
    """Nor anything that only the page needs."""
    program = """
import sys
import agentd.daemon
print(*[name for name in sys.modules if name.startswith(("agentd.control.", "resource"))])
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    pages = {"http", "feed", "page", "readings", "sessions", "markup", "exposition"}
    assert {name.removeprefix("agentd.control.") for name in loaded} & pages == set()
    assert "agentd.control.api" in loaded
