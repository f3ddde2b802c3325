"""What `agentd dashboard` does: asks the daemon to let one browser in, and tells or opens the link.

Always true: the link works once and for two minutes; it is printed for the one who asked and stands in no argument
list: a browser that is started here gets it in a file that only its owner can read.
Not here: the page (control).
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import time
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import click

from agentd.cli.printing import echo_json
from agentd.control.address import is_a_services
from agentd.control.client import Client
from agentd.control.refusal import UnreachableError
from agentd.errors import AgentdError

_TIMEOUT_S = 15.0
_BROWSER_STARTS_S = 5.0
_LEADS_ON = (
    '<!doctype html><meta charset="utf-8"><title>agentd</title><meta http-equiv="refresh" content="0;url={url}">'
)


def show(daemon: Client, *, opened: bool, as_json: bool) -> None:
    """Print the link. opened: start a browser with it, too."""
    status = daemon.status()
    url = status.get("http_url")
    if not url:
        raise AgentdError(
            'the page is off: set [agentd.http] listen = "127.0.0.1:8788" in the configuration, and restart the daemon'
        )
    link = f"{url}/#{_invitation(url, _folder_of_token(daemon.path, Path(status['state_dir'])))}"
    if as_json:
        echo_json({"url": link})
    else:
        click.echo(link)
        click.echo("This link works once, within two minutes.", err=True)
    if opened:
        _open(link)


def _folder_of_token(socket: Path, told: Path) -> Path:
    """The socket's own; the state folder that the daemon names only where a service's socket lies elsewhere.

    A command looks in the folder that it runs in, where somebody else may have put a socket: it could name a token that
    root can read, and an address of its own to have it sent to.
    """
    return told if is_a_services(socket, os.environ) else socket.parent


def _invitation(url: str, state: Path) -> str:
    try:
        token = (state / "http_token").read_text().strip()
    except OSError as error:
        remedy = "run this command as the daemon's user or as root"
        raise UnreachableError(f"{state / 'http_token'} cannot be read ({error.strerror}); {remedy}") from None
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", "/api/invitations", b"", {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        told = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(f"nothing usable answers at {url} ({error}); see the daemon's log") from None
    finally:
        connection.close()
    if response.status != 200:
        raise AgentdError(f"{told.get('message', 'refused')}; {told.get('remedy', '')}")
    return str(told["invitation"])


def _open(link: str) -> None:
    handle, name = tempfile.mkstemp(prefix="agentd-", suffix=".html")  # 0600
    try:
        with os.fdopen(handle, "w") as leading:
            leading.write(_LEADS_ON.format(url=link))
        if not webbrowser.open(Path(name).as_uri()):
            raise AgentdError("no browser could be started; open the link above in one")
        time.sleep(_BROWSER_STARTS_S)
    finally:
        Path(name).unlink()
