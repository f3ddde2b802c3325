"""`agentd dev`: a fake platform in the terminal, to try a plugin while it is written.

    world.py       the hub with its accounts, and a daemon process that is killed and started like any other
    configured.py  the configuration that this daemon gets
    screen.py      what is shown, above the line that is being typed
    prompt.py      what is typed, or comes on a pipe

Always true: the plugin runs in a real daemon, over a real socket and a real journal; only the platform is ours.
Not here: the words of the command line (cli).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from agentd.dev.prompt import converse, recite
from agentd.dev.screen import Screen
from agentd.dev.world import World

T = TypeVar("T")


def run(plugin: str, config: Mapping[str, Any], *, state: Path | None, wait_s: float) -> int:
    """Talk to a plugin until told to stop, or until stdin ends. Returns the exit code.

    plugin: as `use` in a configuration. config: the plugin's settings. state: a folder that is kept; else it is a new
    one that goes in the end. wait_s: how long a line from a pipe may take to be handled.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    screen = Screen(interactive=interactive)
    with _folder(state) as folder, _Loop() as loop:
        world = World(plugin, config, folder, screen.show, keeps=state is not None)
        try:
            loop.do(world.start(stays=interactive))
            return converse(world, screen, loop.do) if interactive else recite(world, screen, loop.do, wait_s)
        except KeyboardInterrupt:
            return 130
        finally:
            loop.do(world.stop())


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Whoever ends us must not leave a daemon behind."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def _folder(state: Path | None) -> Iterator[Path]:
    if state is not None:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield state.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="agentd-dev-") as folder:
            yield Path(folder)


class _Loop:
    """An event loop in a thread of its own, since the one that reads the keyboard blocks. Use as a context manager."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agentd-dev")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done there. An interrupt here cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
