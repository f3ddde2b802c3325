"""A plugin is tried in the terminal: by hand, and by a script on stdin."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.dev.configured import configuration, plugin_name, settings_from
from agentd.errors import ConfigError

GREETER = """
import msgspec
from agentd.plugin import Context, Message, Plugin

class Settings(msgspec.Struct):
    word: str = "hello"
    times: int = 1

plugin = Plugin("greeter", config=Settings)


@plugin.on(Message, where=lambda message: message.text != "ignored")
async def greet(message: Message, ctx: Context) -> None:
    if message.text == "boom":
        raise ValueError("no good")
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    ctx.log.info("number %d", count)
    print("printed")
    ctx.reply(" ".join([ctx.config.word] * ctx.config.times) + f" {count}")
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "greeter.py"
    file.write_text(GREETER)
    return file


@pytest.fixture
def dev(plugin: Path) -> Run:
    def run(*lines: str, words: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agentd", "dev", plugin.name, *words],
            input="".join(f"{line}\n" for line in lines),
            cwd=plugin.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_each_line_is_said_and_answered_before_the_next(dev: Run) -> None:
    done = dev("hi", "", "ignored", "again")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "you: hi",
        "agent: hello 1",
        "you: ignored",
        "you: again",
        "agent: hello 2",
    ]
    assert "info: greeter: number 1\n" in done.stderr
    assert "printed\n" in done.stderr


def test_what_begins_with_a_slash_can_be_said_too(dev: Run) -> None:
    done = dev("//help me", "/as bob //x")
    assert [line for line in done.stdout.splitlines() if not line.startswith("agent")] == ["you: /help me", "bob: //x"]
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_not_there_is_no_plugin_to_wait_for(dev: Run, plugin: Path) -> None:
    plugin.unlink()
    done = dev("hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no file greeter.py; mend the path, or begin one with: agentd new plugin NAME" in done.stderr


def test_others_speak_too_alone_and_in_a_group(dev: Run) -> None:
    done = dev("/as bob hi", "/group all", "/as carol", "hi", "/group all", "/quit", "never said")
    assert done.stdout.splitlines() == [
        "bob: hi",
        "agent to bob: hello 1",
        "you in the group: all",
        "agent in the group: hello 1",
        "carol: hi",
        "agent to carol: hello 1",
        "carol in the group: all",
        "agent in the group: hello 2",
    ]
    assert done.returncode == 0, done.stderr


def test_a_kill_loses_nothing_and_repeats_nothing_and_a_backlog_is_caught_up_with(dev: Run) -> None:
    done = dev("hi", "/restart", "again", "/backlog 3", "/status")
    answers = [line for line in done.stdout.splitlines() if line.startswith("agent")]
    assert answers == [f"agent: hello {number}" for number in range(1, 6)]
    assert "killed, and started again over the same state" in done.stderr
    assert "@agent is live: " in done.stderr
    assert "dead 0, outbox ready 0, outbox sent 5" in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_kept_state_is_there_again(dev: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        done = dev("hi", words=("--state", str(tmp_path / "kept")))
        assert done.stdout.splitlines() == ["you: hi", f"agent: hello {number}"], done.stderr


def test_settings_come_from_a_file_and_from_words_which_win(dev: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('word = "from the file"\ntimes = 3\n')
    done = dev("hi", words=("--config-toml", "settings.toml", "--set", 'word=good "day"', "--set", "times=2"))
    assert done.stdout.splitlines()[1] == 'agent: good "day" good "day" 1', done.stderr


def test_what_fails_is_shown_with_its_traceback_once_and_the_code_tells(dev: Run) -> None:
    done = dev("hi", "boom", words=("--wait", "3"))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert re.search(r'File ".*/greeter.py", line 15, in greet\n.*\nValueError: no good\n', done.stderr)
    assert "host/turns.py" not in done.stderr
    assert "attempt 2 failed" in done.stderr
    assert done.stderr.endswith("not handled within 3 s: boom\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nonsense", "/nonsense: no such command; these are known:"),
        ("/as NOBODY! hi", "'NOBODY!' is no name for a peer"),
        ("/as agent hi", "'agent' is no name for a peer"),
        ("/backlog x", "/backlog x: no such command"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_rest_is(dev: Run, line: str, told: str) -> None:
    done = dev(line, "hi")
    assert done.returncode == 1
    assert told in done.stderr
    assert "agent: hello 1" in done.stdout


def test_a_plugin_that_cannot_start_is_told_with_its_line_and_the_code_of_the_daemon(dev: Run, plugin: Path) -> None:
    plugin.write_text("plugin = (\n")
    done = dev("hi")
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{plugin}:1: plugin greeter: " in done.stderr
    assert dev("hi", words=("--set", "nonsense")).returncode == 2
    assert dev("hi", words=("--config-toml", "gone.toml")).returncode == 78


def test_a_setting_that_does_not_fit_is_told(dev: Run) -> None:
    done = dev("hi", words=("--set", "tmes=2"))
    assert done.returncode == 78
    assert "plugin.greeter.config.tmes: no such setting; did you mean times?" in done.stderr


# At a terminal


class Terminal:
    """A person at a terminal, and what they see."""

    def __init__(self, plugin: Path) -> None:
        self._master, slave = pty.openpty()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentd", "dev", plugin.name],
            cwd=plugin.parent,
            env={**environ, "NO_COLOR": "1", "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def see(self, text: str) -> None:
        """Wait for this behind what was seen before."""
        until = time.monotonic() + 20
        while text not in self._seen:
            assert time.monotonic() < until, self._seen
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 4_096).decode()
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        os.close(self._master)


@pytest.fixture
def terminal(plugin: Path) -> Iterator[Terminal]:
    made = Terminal(plugin)
    try:
        yield made
    finally:
        made.close()


def test_at_a_terminal_what_happens_appears_above_what_is_being_typed(terminal: Terminal, plugin: Path) -> None:
    terminal.see("what you type is said to it")
    terminal.see("you> ")
    terminal.type("hi\r")
    terminal.see("agent: hello 1")
    terminal.type("half a ")
    terminal.see("half a ")
    plugin.write_text(GREETER.replace('"hello"', '"changed"'))
    terminal.see("reloaded: generation 2")
    terminal.see("you> half a ")
    terminal.type("line\r")
    terminal.see("agent: changed 2")
    plugin.write_text("plugin = (\n")
    terminal.see(f"not reloaded, the generation before stays: {plugin}:1: plugin greeter")
    terminal.type("/restart\r")
    terminal.see("the daemon has ended (exit code 78); it starts again when the plugin changes")
    terminal.type("mended?\r")
    terminal.see("no daemon runs; it will have this when it is back")
    plugin.write_text(GREETER)
    terminal.type("/status\r")
    terminal.see("agent: hello 3")
    terminal.type("/quit\r")
    assert terminal.process.wait(20) == 0


# The configuration


def test_a_plugin_is_called_after_its_file_or_module() -> None:
    uses = ["./a/greeter.py", "./my plugin!.py", "/x/packed", "package.module:attribute", "echo"]
    assert [plugin_name(use) for use in uses] == ["greeter", "my-plugin", "packed", "package-module", "echo"]


_values = st.recursive(
    st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), _values, max_size=4))
def test_any_settings_reach_the_daemon_as_they_were_given(settings: dict[str, object]) -> None:
    text = configuration("/p/greeter.py", settings, Path("/state"), "http://127.0.0.1:1")
    assert tomllib.loads(text)["plugin"]["greeter"]["config"] == settings


def test_pairs_lead_into_tables_and_are_toml_where_they_can_be() -> None:
    pairs = [("a.b", "1"), ("a.c", "[1, 2]"), ("d", "plain text"), ("e", '"2"')]
    assert settings_from(None, pairs) == {"a": {"b": 1, "c": [1, 2]}, "d": "plain text", "e": "2"}
    with pytest.raises(ConfigError, match=r"--set d\.x: d is no table"):
        settings_from(None, [("d", "1"), ("d.x", "2")])
