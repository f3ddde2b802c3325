"""The log: its three forms, its fields, and the keys that never get into any of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import logs

SECRET = "a-key-that-looks-like-nothing"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The process's logging as it was."""
    root = logging.getLogger()
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    chatty = {name: logging.getLogger(name).level for name in ("aiohttp", "aiosqlite", "asyncio", "websockets")}
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in chatty.items():
        logging.getLogger(name).setLevel(old)
    logging.captureWarnings(False)


def written(
    say: Callable[[logging.Logger], object], stream: io.StringIO | None = None, level: str = "debug", **environ: str
) -> str:
    stream = stream or io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own, which cannot pass on what is not UTF-8
    logs.configure(level, stream, environ)
    say(logging.getLogger("agentd.test"))
    return stream.getvalue()


def test_on_a_pipe_a_line_is_one_json_object_with_the_fields_around_it() -> None:
    def say(log: logging.Logger) -> None:
        with logs.bound(identity="alice", conversation="conv_1"), logs.bound(plugin="greeter"):
            log.info("two\nlines %s", "of text", extra={"conversation": "conv_2"})

    line = json.loads(written(say))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "agentd.test",
        "message": "two\nlines of text",
        "identity": "alice",
        "conversation": "conv_2",
        "plugin": "greeter",
    }


def test_fields_end_where_they_were_bound() -> None:
    def say(log: logging.Logger) -> None:
        with logs.bound(identity="alice"):
            pass
        log.info("after")

    assert "identity" not in json.loads(written(say))


async def test_a_task_carries_the_fields_under_which_it_was_started() -> None:
    stream = io.StringIO()
    logs.configure("info", stream, {})

    async def say() -> None:
        logging.getLogger("agentd.test").info("within")

    async with asyncio.TaskGroup() as tasks:
        with logs.bound(identity="alice"):
            tasks.create_task(say())
        tasks.create_task(say())
    assert [json.loads(line).get("identity") for line in stream.getvalue().splitlines()] == ["alice", None]


def test_on_a_terminal_a_line_is_for_reading() -> None:
    def say(log: logging.Logger) -> None:
        log.warning("slow", extra={"identity": "alice"})

    line = written(say, Terminal(), NO_COLOR="1")
    assert line[8:] == " warning  slow  identity=alice\n"
    assert "\x1b[33mwarning" in written(say, Terminal())


@given(st.text())
def test_no_text_can_start_another_line_or_steer_a_terminal(text: str) -> None:
    for stream in (Terminal(), io.StringIO()):
        line = written(lambda log: log.info("said: %s", text, extra={"conversation": text}), stream, NO_COLOR="1")
        assert line.endswith("\n")
        assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in line[:-1])
        assert len(line.splitlines()) == 1


def test_a_lone_surrogate_does_not_cost_the_line() -> None:
    for stream in (Terminal(), io.StringIO()):
        assert "udcff" in written(lambda log: log.info("file %s", os.fsdecode(b"\xff")), stream)


def test_a_wrong_format_string_does_not_cost_the_line() -> None:
    record = logging.LogRecord("agentd.test", logging.INFO, __file__, 1, "%d", ("x",), None)
    assert "its arguments do not fit" in json.loads(logs.JsonFormatter().format(record))["message"]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_key_is_blotted_out_wherever_it_stands(stream: type[io.StringIO]) -> None:
    logs.conceal(SECRET)

    def say(log: logging.Logger) -> None:
        with logs.bound(identity=SECRET):
            try:
                raise ValueError(f"bad key {SECRET}")
            except ValueError:
                log.exception("key %s", SECRET, extra={"plugin": SECRET}, stack_info=True)

    text = written(say, stream())
    assert SECRET not in text
    assert "ValueError: bad key [redacted]" in text
    assert "key [redacted]" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key ac_live_abcdefgh!", "key [redacted]!"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer [redacted]"),
        ('{"authorization": "bearer abc"}', '{"authorization": "bearer [redacted]"}'),
        ("https://h/?k=ac_0123456789", "https://h/?k=[redacted]"),
        ("mac_address_of_it, bearer", "mac_address_of_it, bearer"),
    ],
)
def test_what_looks_like_a_key_is_blotted_out_unasked(text: str, shown: str) -> None:
    assert logs.redacted(text) == shown


def test_a_key_that_begins_with_another_is_blotted_out_whole() -> None:
    logs.conceal("first-secret")
    logs.conceal("first-secret-and-more")
    assert logs.redacted("first-secret-and-more") == "[redacted]"


def test_the_memory_for_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_concealed", logs._Concealed())
    monkeypatch.setattr(logs, "_CONCEALED_MAX", 2)
    for secret in ("oldest-secret", "middle-secret", "newest-secret"):
        logs.conceal(secret)
    assert logs.redacted("oldest-secret middle-secret newest-secret") == "oldest-secret [redacted] [redacted]"


def test_a_key_that_is_read_again_is_not_forgotten_for_those_that_were_rotated_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_concealed", logs._Concealed())
    monkeypatch.setattr(logs, "_CONCEALED_MAX", 2)
    for secret in ("lasting-secret", "rotated-secret", "lasting-secret", "current-secret"):
        logs.conceal(secret)
    assert logs.redacted("lasting-secret current-secret") == "[redacted] [redacted]"


def test_libraries_that_log_content_at_debug_level_are_kept_quiet() -> None:
    def say(log: logging.Logger) -> None:
        logging.getLogger("websockets.client").debug("< TEXT secret words")
        logging.getLogger("my_plugin").debug("heard")

    assert [json.loads(line)["message"] for line in written(say).splitlines()] == ["heard"]


def test_warnings_and_uncaught_exceptions_go_the_same_way() -> None:
    logs.conceal(SECRET)
    stream = io.StringIO()
    logs.configure("info", stream, {})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"mind {SECRET}", stacklevel=1)
    error = RuntimeError(SECRET)
    sys.excepthook(RuntimeError, error, None)
    threading.excepthook(threading.ExceptHookArgs((RuntimeError, error, None, threading.current_thread())))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["warning", "critical", "error"]
    assert "RuntimeError: [redacted]" in lines[1]["exception"]
    assert SECRET not in stream.getvalue()


def test_a_process_that_dies_of_an_exception_does_not_print_the_key() -> None:
    program = (
        "from agentd import logs\n"
        f"logs.conceal({SECRET!r}); logs.configure('info')\n"
        f"key = {SECRET!r}\n"
        "raise RuntimeError(key)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "uncaught exception" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_configuring_again_replaces_the_first_output() -> None:
    first = io.StringIO()
    logs.configure("info", first, {})
    assert written(lambda log: log.info("once")).count("once") == 1
    assert first.getvalue() == ""


# The journal


class Journal:
    """journald's end: a datagram socket, and a stream that it calls its own."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "journal")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(5)
        self.stream = (folder / "stderr").open("w+")
        status = os.fstat(self.stream.fileno())
        self.environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

    def entry(self) -> dict[str, str]:
        datagram, fields = self.socket.recv(1 << 20), {}
        while datagram:
            head, _, datagram = datagram.partition(b"\n")
            name, plain, value = head.partition(b"=")
            if not plain:
                length = int.from_bytes(datagram[:8], "little")
                value, datagram = datagram[8 : 8 + length], datagram[8 + length :].removeprefix(b"\n")
            fields[name.decode()] = value.decode()
        return fields

    def close(self) -> None:
        self.socket.close()
        self.stream.close()


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    monkeypatch.setattr(logs.JournalHandler.__init__, "__defaults__", (journal.address,))
    yield journal
    journal.close()


def test_to_the_journal_fields_and_level_are_kept_and_lines_stay_together(journal: Journal) -> None:
    logs.conceal(SECRET)
    logs.configure("info", journal.stream, journal.environ)
    with logs.bound(identity="alice"):
        logging.getLogger("agentd.test").error("one\ntwo %s", SECRET, extra={"event_id": "msg_1"})
    entry = journal.entry()
    assert entry.pop("CODE_FILE") == __file__
    assert entry.pop("CODE_LINE").isdecimal()
    assert entry == {
        "MESSAGE": "one\ntwo [redacted]",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "agentd",
        "LOGGER": "agentd.test",
        "AGENTD_IDENTITY": "alice",
        "AGENTD_EVENT_ID": "msg_1",
    }


def test_a_traceback_reaches_the_journal_in_the_same_entry(journal: Journal) -> None:
    logs.configure("info", journal.stream, journal.environ)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("agentd.test").exception("failed")
    assert journal.entry()["MESSAGE"].startswith("failed\nTraceback (most recent call last):\n")


def test_no_message_is_hidden_by_a_character_in_it_that_journalctl_does_not_print(journal: Journal) -> None:
    logs.configure("info", journal.stream, journal.environ)
    try:
        raise ValueError("peer\x1b[2J\x9b")
    except ValueError:
        logging.getLogger("agentd.test").exception("handler\x00 failed")
    lines = journal.entry()["MESSAGE"].split("\n")
    assert (lines[0], lines[-1]) == ("handler\\u0000 failed", "ValueError: peer\\u001b[2J\\u009b")


def test_what_cannot_be_shown_costs_its_line_and_nothing_else(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise ValueError

    handler = logs.JournalHandler(journal.stream, 1_000, journal.address)
    for said in ({"msg": "%s", "args": (Unspeakable(),)}, {"msg": Unspeakable()}, {"msg": "next"}):
        handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", "name": "x", **said}))
    handler.close()
    assert journal.entry()["MESSAGE"].startswith("'%s' (its arguments do not fit")
    assert journal.entry()["MESSAGE"] == "next"
    assert "Logging error" in capsys.readouterr().err


def test_what_the_journal_does_not_take_goes_to_stderr_with_its_level(journal: Journal) -> None:
    logs.configure("info", journal.stream, journal.environ)
    journal.socket.close()
    logging.getLogger("agentd.test").warning("alone\nhere")
    journal.stream.seek(0)
    assert journal.stream.read() == "<4>alone\\nhere\n"


def test_a_stream_that_is_not_the_journals_own_is_not_taken_for_it(journal: Journal, tmp_path: Path) -> None:
    assert logs.is_journal(journal.stream, journal.environ)
    with (tmp_path / "other").open("w") as other:
        assert not logs.is_journal(other, journal.environ)
    assert not logs.is_journal(io.StringIO(), journal.environ)
    assert not logs.is_journal(journal.stream, {})
