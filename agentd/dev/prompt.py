"""What somebody types, or what comes on a pipe, line by line: said to the agent, or a command.

Always true: a line that cannot be carried out changes nothing, and says what would help.
Not here: what the words do (world), how things look (screen).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from agentd.dev.screen import Screen
from agentd.dev.world import YOU, Unusable, World

Do = Callable[[Coroutine[Any, Any, Any]], Any]
"""Has something done on the world's loop, and waits for it."""

HELP = """\
TEXT             say it to the agent; //TEXT says /TEXT
/as NAME TEXT    say it as another peer; /as NAME alone goes on as NAME
/group TEXT      say it in a group that the agent is in, too
/backlog N       the agent goes away, N messages come, it comes back
/restart         kill the daemon and start it again over the same state
/status          how the agent and its plugin fare
/quit            end (Ctrl-D)"""

_BACKLOG_MAX = 10_000


class Quit(Exception):
    """Somebody wants to end this."""


def converse(world: World, screen: Screen, do: Do) -> int:
    """Talk with a person. Returns the exit code."""
    screen.show("note", f"plugin {world.plugin} runs as @agent; what you type is said to it. /help tells the rest.")
    session = _Session(world, screen, do)
    while True:
        try:
            session.line(screen.ask(f"{session.peer}> "))
        except Unusable as error:
            screen.show("trouble", str(error))
        except (EOFError, Quit):
            return 0


def recite(world: World, screen: Screen, do: Do, wait_s: float) -> int:
    """Say line by line what comes on stdin, each when the one before was handled. Returns the exit code.

    0 if all was handled, 1 if something was not, could not be done, or became a dead letter; the daemon's own if it
    could not start.
    """
    if world.exit_code is not None:
        return world.exit_code
    dead_before = do(world.dead())
    session = _Session(world, screen, do)
    code = 0
    for line in sys.stdin:
        try:
            session.line(line.rstrip("\n"))
        except Unusable as error:
            screen.show("trouble", str(error))
            code = 1
        except Quit:
            break
        if not do(world.until_handled(wait_s)):
            screen.show("trouble", f"not handled within {wait_s:g} s: {line.strip()}")
            code = 1
    return 1 if do(world.dead()) > dead_before else code


class _Session:
    """peer: who speaks."""

    def __init__(self, world: World, screen: Screen, do: Do) -> None:
        self._world = world
        self._screen = screen
        self._do = do
        self.peer = YOU

    def line(self, line: str) -> None:
        """Carry one line out. Raises Unusable, Quit."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not word.startswith("/") or word.startswith("//"):
            if line.strip():
                self._say(self.peer, line.strip().removeprefix("/") if word.startswith("//") else line)
            return
        match word:
            case "/as" if rest:
                peer, _, text = rest.partition(" ")
                peer = peer.removeprefix("@")
                if text.strip():
                    self._say(peer, text.strip())
                else:
                    self.peer = peer
            case "/group" if rest:
                self._do(_called(self._world.say_in_group, self.peer, rest))
            case "/backlog" if rest.isdecimal() and 0 < int(rest) <= _BACKLOG_MAX:
                self._do(self._world.backlog(self.peer, int(rest)))
            case "/restart":
                self._do(self._world.restart())
                if self._world.exit_code is None:
                    self._screen.show("note", "killed, and started again over the same state")
            case "/status":
                self._screen.show("note", _status(self._do(self._world.status())))
            case "/help":
                self._screen.show("note", HELP)
            case "/quit":
                raise Quit
            case _:
                raise Unusable(f"{line.strip()}: no such command; these are known:\n{HELP}")

    def _say(self, peer: str, text: str) -> None:
        self._do(_called(self._world.say, peer, text))
        if self._world.exit_code is not None:
            self._screen.show("note", "no daemon runs; it will have this when it is back")


async def _called(function: Callable[..., None], *given: Any) -> None:
    function(*given)


def _status(status: dict[str, Any] | None) -> str:
    if status is None:
        return "the daemon does not answer"
    lines = []
    for each in status["identities"]:
        counts = ("journaled", "handled", "pending", "dead", "outbox_ready", "outbox_sent", "outbox_refused")
        told = ", ".join(f"{name.replace('_', ' ')} {each[name]}" for name in counts if name in each)
        lines.append(f"@agent is {each['state']}: {told}")
    for each in status["plugins"]:
        trouble = f"; not reloaded: {each['reload_error']}" if each["reload_error"] else ""
        lines.append(f"plugin {each['name']}: generation {each['generation']}, breaker {each['breaker']}{trouble}")
    return "\n".join(lines)
