"""What a peer, a platform or a shell may have written, on its way through the command to a terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from agentd.cli.printing import word
from tests.conftest import explanation
from tests.test_cli import agentd_command, on_terminal

EVIL = "\x1b[2J\x9b31m\x7f\u202e\u2066\u200f\u061c\u2028\r"
"""Clears the screen, colours, deletes, turns writing around, begins lines."""

FOREIGN = {
    *("conversation", "id", "event_id", "sender", "text", "type", "target", "error", "code", "request_id", "reason"),
    *("traceback", "client_msg_id", "state_reason", "trouble", "data", "result_id", "handle", "why", "remedy"),
}
"""Fields whose words are those of a peer, a platform or a plugin."""

READING = {
    "status": [],
    "gaps": ["--all"],
    "outbox ls": ["--all"],
    "outbox show": ["agentd-7-0"],
    "dead ls": [],
    "dead show": ["3"],
    "explain": ["msg_9"],
    "pause": [f"conv_1{EVIL}"],
    "resume": [f"conv_1{EVIL}"],
    "replay": ["--plugin", "echo", "--dry-run"],
    "send": ["@echo", "hello"],
    "tail": [],
}


def evil(value: Any, name: str = "") -> Any:
    """The same with all words in it evil that are not our own."""
    match value:
        case dict():
            return {key: evil(each, key) for key, each in value.items()}
        case list():
            return [evil(each, name) for each in value]
        case str() if name in FOREIGN:
            return f"{EVIL}{value}"
    return value


@pytest.fixture
def evil_daemon(served: Any) -> Any:
    daemon = served.daemon
    gap = {"identity": "alice", "conversation": "conv_1", "epoch": 1, "start": 3, "stop": 5, "attempts": 1, "absent": 2}
    gap |= {"found_at": "2026-01-02T03:04:05Z", "closed_at": None, "outcome": None, "reason": "gone"}
    plugin = {"name": "echo", "lanes": 1, "running": 0, "timers": 0, "breaker": "open", "trouble": "down"}
    plugin |= {"held": [{"identity": "alice", "conversation": "conv_1", "event_id": "msg_9"}], "trial_in_s": 3.0}
    daemon.gap_list, daemon.plugins = [evil(gap)], [evil(plugin)]
    daemon.identities, daemon.answer = evil(daemon.identities), evil(daemon.answer)
    daemon.sends, daemon.letters = evil(daemon.sends), evil(daemon.letters)
    for each in daemon.letters.values():
        each["held"] = True
    daemon.explained, daemon.replays = evil(explanation()), evil(daemon.replays)
    daemon.pauses = [
        evil(
            {
                "identity": "alice",
                "conversation": "c",
                "paused_at": "2026-01-02T03:04:05Z",
                "until": None,
                "reason": "r",
            }
        )
    ]
    served.happen(evil(explanation()["events"][0]["event"]))
    served.happen(None)
    return served


def steering(output: str) -> set[str]:
    return {
        char
        for char in output
        if char not in "\n" and (unicodedata.category(char) in ("Cc", "Zl", "Cs") or char in "\u202e\u2066\u200f\u061c")
    }


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize("verb", READING)
def test_no_words_of_others_can_steer_the_terminal(verb: str, as_json: bool, evil_daemon: Any) -> None:
    words = [*verb.split(), *READING[verb], "--state", str(evil_daemon.path.parent), *(["--json"] if as_json else [])]
    result = agentd_command(*words)
    assert steering(result.stdout + result.stderr) == set()
    assert "\\u009b31m" in result.stdout + result.stderr
    if as_json:
        told = (
            [json.loads(result.stdout)]
            if verb not in ("tail", "replay")
            else map(json.loads, result.stdout.splitlines())
        )
        assert EVIL in _text_of(list(told)), "a program reads what was written"


def _text_of(value: Any) -> str:
    match value:
        case dict():
            return " ".join(_text_of(each) for each in value.values())
        case list():
            return " ".join(map(_text_of, value))
    return str(value)


def test_an_export_is_shown_on_a_terminal_so_that_it_cannot_steer_it(served: Any) -> None:
    line = json.dumps({"position": 1, "payload": EVIL}, ensure_ascii=False).encode() + b"\n"
    served.daemon.exported = [b'{"up_to":1}\n', line, b'{"exported":1,"unreadable":0}\n']
    output = on_terminal(served, 80, words=("export",)).replace("\r\n", "\n")
    assert steering(output) == set()
    assert json.loads(output.splitlines()[0])["payload"] == EVIL


def test_a_word_of_a_command_to_copy_is_one_word() -> None:
    assert shlex.split(word("conv_1; rm -rf ~ \x1b")) == ["conv_1; rm -rf ~ \\u001b"]
    assert word("conv_1") == "conv_1"


# What the shell left


def shell(served: Any, script: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a script in which $AGENTD is the command."""
    return subprocess.run(
        ["sh", "-c", script],
        env={**os.environ, "AGENTD": f"{sys.executable} -m agentd", "AGENTD_STATE": str(served.path.parent), **environ},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "script",
    [
        "$AGENTD status \"$(printf 'a\\377')\"",
        "$AGENTD send @echo \"$(printf 'a\\377')\"",
        "$AGENTD pause \"$(printf 'a\\377')\"",
        "$AGENTD outbox show \"$(printf 'a\\377')\"",
    ],
)
def test_a_word_that_is_not_utf_8_is_told_in_one_line(served: Any, script: str) -> None:
    done = shell(served, script)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"agentd: a word of the command is not UTF-8; write it in UTF-8\n"
    assert served.daemon.asked == []


def test_text_on_stdin_that_is_not_utf_8_is_a_matter_of_usage(served: Any) -> None:
    done = shell(served, "printf 'a\\377' | $AGENTD send @echo -")
    assert done.returncode == 2
    assert done.stderr.endswith(b"Error: what came on stdin is not UTF-8\n")


def test_a_terminal_that_lacks_a_character_gets_its_number(served: Any) -> None:
    served.daemon.answer["reply"]["text"] = "caf\xe9 \u2615"
    done = shell(served, "$AGENTD send @echo hello", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout) == (0, b"@echo: caf\xe9 \\u2615\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_shell_has_closed_fails_nothing(closed: str, served: Any) -> None:
    done = shell(served, f"$AGENTD status {closed}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_log_that_nobody_wants_keeps_nothing_from_running(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m agentd hub --port 0 --store {tmp_path}/hub.db 2>&-"
    hub = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
    assert hub.stdout is not None
    try:
        assert hub.stdout.readline().startswith(b"hub at http://127.0.0.1:")
        assert os.readlink(f"/proc/{hub.pid}/fd/2") == os.devnull, "no file of the hub's is taken for the log"
    finally:
        hub.terminate()
        assert hub.wait(20) == 0
        hub.stdout.close()
