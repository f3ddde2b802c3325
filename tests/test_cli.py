"""The command: words, answers, exit codes, and what a verb may cost."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import agentd
from agentd import cli
from agentd.cli.recording import _written
from agentd.cli.tables import Column, age, columns_of, since, table
from agentd.control.refusal import ControlError
from agentd.errors import ConfigError

HEAVY = {"asyncio", "aiohttp", "websockets", "aiosqlite", "uvloop", "sqlite3", "agentd.daemon", "agentd.hub"}


def agentd_command(*words: str, stdin: str | None = None, **environ: str) -> Result:
    """Run the command in this process. Its environment: PATH and what is given."""
    clean = {name: None for name in os.environ if name.startswith(("AGENTD_", "NO_COLOR"))}
    return CliRunner(env={**clean, **environ}).invoke(cli.cli, words, input=stdin, prog_name="agentd")


@pytest.fixture
def ask(served: Any) -> Callable[..., Result]:
    """Run a verb against a daemon that answers."""

    def run(*words: str, **options: Any) -> Result:
        return agentd_command(*words, "--state", str(served.path.parent), **options)

    return run


def child(served: Any, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        env={**os.environ, "AGENTD_STATE": str(served.path.parent), **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


# status


def test_status_in_json_is_what_the_daemon_said(ask: Callable[..., Result], served: Any) -> None:
    result = ask("status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == served.daemon.status()
    assert result.stderr == ""


def test_status_for_people_says_each_identity_on_a_line(ask: Callable[..., Result]) -> None:
    lines = ask("status").stdout.splitlines()
    assert lines[0] == "agentd 0.1.0, pid 42, up 1 h 6 min, state in /var/lib/agentd"
    assert lines[2].split()[:3] == ["IDENTITY", "HANDLE", "STATE"]
    assert lines[3].split()[:3] == ["alice", "@alice", "live"]
    assert "1,234,567" in lines[3]
    assert lines[5] == "bob: key refused"


def test_status_says_where_an_outbox_is_full(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.identities[0]["outbox_full"] = True
    told = "alice: the outbox is full (sending.outbox_max), and turns that send wait; see: agentd outbox ls"
    assert told in ask("status").stdout.splitlines()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("held_full", True, "alice: more came behind a gap than is held (intake.held_max)"),
        ("questions_full", True, "alice: more repeats have come than are looked up at once (intake.questions_max)"),
        ("targets_stopped", 2, "alice: 2 targets wait for a decision; see: agentd outbox ls --only unknown"),
    ],
)
def test_status_says_which_bound_of_an_identity_is_reached(
    ask: Callable[..., Result], served: Any, field: str, value: object, told: str
) -> None:
    assert told not in ask("status").stdout
    served.daemon.identities[0][field] = value
    assert told in ask("status").stdout


@pytest.mark.parametrize(
    ("journal", "told"),
    [
        ({"full": True, "at_limit": True}, "journal: it is as large as journal.max_mb allows"),
        ({"full": True, "at_limit": False}, "journal: its disk has no room"),
        ({"full": False, "behind": True}, "journal: more commits wait than journal.waiting_max"),
    ],
)
def test_status_says_what_keeps_the_journal_from_taking_more(
    ask: Callable[..., Result], served: Any, journal: dict[str, bool], told: str
) -> None:
    served.daemon.journal = journal
    assert next(line for line in ask("status").stdout.splitlines() if line.startswith("journal:")).startswith(told)


def test_status_says_which_plugin_has_no_room_for_its_state(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.plugins = [
        {"name": "echo", "state_full": True, "state_bytes": 1_048_000, "state_max_bytes": 1_048_576}
    ]
    told = "plugin echo: its state has no room (state_max_mb): 1,048,000 of 1,048,576 bytes"
    assert told in ask("status").stdout.splitlines()


def test_status_of_one_identity_shows_that_one(ask: Callable[..., Result]) -> None:
    output = ask("status", "bob").stdout
    assert "bob" in output
    assert "alice" not in output


def test_an_unknown_identity_fails_with_the_remedy(ask: Callable[..., Result]) -> None:
    result = ask("status", "bop")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "agentd: there is no identity 'bop'; did you mean 'bob'?\n"


def test_status_asks_the_daemon_without_loading_one(served: Any) -> None:
    program = (
        "import sys\nfrom agentd.cli import main\ntry: main()\nfinally: print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "status", "--json"],
        env={**os.environ, "AGENTD_STATE": str(served.path.parent)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["pid"] == 42
    loaded = set(done.stderr.splitlines())
    assert "agentd.control.client" in loaded
    assert loaded & HEAVY == set()


def test_help_loads_no_verb_at_all() -> None:
    program = "import sys\nfrom agentd.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert loaded & (HEAVY | {"msgspec", "agentd.cli.verbs", "agentd.config", "http.client"}) == set()


# On a terminal


def on_terminal(served: Any, columns: int, *, words: Sequence[str] = ("status",), code: int = 0, **environ: str) -> str:
    """What a verb writes to a terminal that wide."""
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**clean, "COLUMNS": str(columns), "AGENTD_STATE": str(served.path.parent), **environ},
    )
    os.close(theirs)
    output = b""
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while some := terminal.read(65_536):
                output += some
        except OSError:
            pass  # how Linux says that the other end of a terminal was closed
    assert process.wait(10) == code
    return output.decode()


def test_a_terminal_gets_colour_and_no_line_too_long(served: Any) -> None:
    output = on_terminal(served, 60)
    assert "\x1b[32mlive\x1b[0m" in output
    assert "\x1b[31mparked\x1b[0m" in output
    plain = on_terminal(served, 60, NO_COLOR="1")
    assert "\x1b" not in plain
    table_lines = plain.splitlines()[2:5]
    assert all(len(line) <= 60 for line in table_lines)
    assert "PENDING" in table_lines[0]
    assert "CONV" not in table_lines[0]


def test_at_a_terminal_the_waiting_is_told_and_a_tail_says_what_it_shows(served: Any) -> None:
    served.daemon.reply_after_s = 1.5
    assert "the message is kept; waiting for the reply" in on_terminal(served, 80, words=("send", "@echo", "hello"))
    served.happen(None)  # the tail ends
    assert "what is committed from now on; --since 0 begins" in on_terminal(served, 80, words=("tail",), code=69)


def test_a_pipe_gets_no_colour(served: Any) -> None:
    done = child(served, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


# send


def test_send_shows_the_reply_on_stdout_and_the_rest_beside_it(ask: Callable[..., Result], served: Any) -> None:
    result = ask("send", "@echo", "hello")
    assert result.exit_code == 0
    assert result.stdout == "@echo: hello back\n"
    assert result.stderr == "sent to @echo as seq 4, key key-1\n"
    [(_, identity, target, content, wait_s, key)] = served.daemon.asked
    assert (identity, target, content.text, wait_s, key) == (None, "@echo", "hello", 10.0, None)


@pytest.mark.parametrize(("target", "hinted"), [("bob", True), ("@bob", False), ("conv_1", False)])
def test_who_leaves_out_the_sign_of_a_handle_is_told(
    ask: Callable[..., Result], served: Any, target: str, hinted: bool
) -> None:
    served.daemon.answer = {**served.daemon.answer, "state": "refused", "reply": None, "error": "404 NOT_FOUND"}
    assert ("a handle has an @ before it: @bob" in ask("send", target, "hello").stderr) is hinted


def test_send_passes_its_options_on(ask: Callable[..., Result], served: Any) -> None:
    ask("send", "conv_1", "hello", "--as", "bob", "--no-wait", "--key", "key-7")
    ask("send", "conv_1", "hello", "--wait", "2.5")
    assert [(asked[1], asked[4], asked[5]) for asked in served.daemon.asked] == [
        ("bob", 0.0, "key-7"),
        (None, 2.5, None),
    ]


def test_send_reads_a_long_text_from_stdin(ask: Callable[..., Result], served: Any) -> None:
    ask("send", "@echo", "-", stdin="two\nlines\n\n")
    assert served.daemon.asked[0][3].text == "two\nlines\n"


def test_an_empty_text_is_not_sent(ask: Callable[..., Result], served: Any) -> None:
    assert ask("send", "@echo", "").exit_code == 2
    assert ask("send", "@echo", "-", stdin="\n").exit_code == 2
    assert served.daemon.asked == []


def test_a_reply_cannot_steer_the_terminal(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.answer["reply"] = {"text": "one\n\x1b[2Jtwo", "sender": "@e\r", "seq": 5}
    assert ask("send", "@echo", "hello").stdout == "@e\\u000d: one\n\\u001b[2Jtwo\n"


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        ({"state": "sent", "reply": None}, 0, "sent to @echo as seq 4, key key-1; no reply within 10 s\n"),
        ({"state": "ready", "reply": None}, 0, "on disk; goes out as soon as the platform takes it, key key-1\n"),
        ({"state": "unknown", "reply": None}, 0, "sent, but no answer came: the same key is tried again, key key-1\n"),
        ({"state": "refused", "reply": None, "error": "BLOCKED"}, 1, "refused: BLOCKED, key key-1\n"),
    ],
)
def test_send_tells_what_became_of_the_message(
    ask: Callable[..., Result], served: Any, answer: dict[str, Any], code: int, told: str
) -> None:
    served.daemon.answer.update(answer)
    result = ask("send", "@echo", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", told)
    as_json = ask("send", "@echo", "hello", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (code, served.daemon.answer)


def test_a_send_that_the_daemon_refuses_fails_with_the_remedy(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ControlError(409, "WHICH", "two identities could be meant", "add --as NAME")
    result = ask("send", "@echo", "hello", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "agentd: two identities could be meant; add --as NAME\n"


# tail and gaps


def record(**fields: Any) -> dict[str, Any]:
    return {
        "position": 9,
        "identity": "alice",
        "conversation": "conv_1",
        "seq": 3,
        "id": "msg_3",
        "sender": "@bob",
        "source": "live",
        "own": False,
        "late": False,
        "type": "message",
        "text": "hi",
        "received_at": "2026-01-02T03:04:05Z",
        **fields,
    }


def test_tail_shows_a_line_per_record_until_the_daemon_ends_it(ask: Callable[..., Result], served: Any) -> None:
    for each in (record(), record(seq=4, text=None, late=True), None):
        served.happen(each)
    result = ask("tail", "alice", "--since", "8")
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).astimezone().strftime("%H:%M:%S")
    assert result.stdout.splitlines() == [
        f"{when} alice conv_1 #3 @bob: hi",
        f"{when} alice conv_1 #4 (late) @bob [message]",
    ]
    assert served.daemon.asked == [("tail", "alice", 8)]
    assert result.exit_code == 69
    assert "ended the stream" in result.stderr


def test_tail_in_json_is_a_line_per_record(ask: Callable[..., Result], served: Any) -> None:
    for each in (record(), record(text="ü\n"), None):
        served.happen(each)
    lines = ask("tail", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [record(), record(text="ü\n")]


def test_tail_ends_quietly_when_interrupted(served: Any) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "tail", "--json"],
        env={**os.environ, "AGENTD_STATE": str(served.path.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    served.happen(record())
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == record()
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=10), process.returncode) == (("", ""), 130)


def test_gaps_are_listed_with_their_range(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.gap_list = [
        {
            "identity": "alice",
            "conversation": "conv_1",
            "epoch": 1,
            "start": 3,
            "stop": 1_003,
            "found_at": "2026-01-02T03:04:05Z",
            "closed_at": None,
            "attempts": 2,
            "outcome": "",
            "absent": 0,
            "reason": "",
        }
    ]
    result = ask("gaps")
    assert "conv_1" in result.stdout
    assert "3-1002" in result.stdout
    assert "open" in result.stdout
    assert json.loads(ask("gaps", "alice", "--all", "--limit", "5", "--json").stdout) == served.daemon.gap_list
    assert served.daemon.asked == [("gaps", None, True, 100), ("gaps", "alice", False, 5)]


def test_a_conversation_that_is_held_is_shown_and_released(ask: Callable[..., Result], served: Any) -> None:
    held = {"identity": "alice", "conversation": "conv_held", "event_id": "msg_1"}
    given_up = {"id": "t", "identity": "alice", "error": "ValueError: no"}
    served.daemon.plugins = [
        {
            "name": "greeter",
            "breaker": "open",
            "trial_in_s": 3.0,
            "trouble": "OSError: no",
            "held": [held],
            "timers_given_up": [given_up],
        },
        {"name": "healthy", "breaker": "closed", "trial_in_s": None, "held": []},
        {
            "name": "partly",
            "breaker": "closed",
            "waiting_identities": [{"identity": "alice", "breaker": "half-open", "trial_in_s": None}],
        },
    ]
    told = ask("status").stdout
    assert "plugin greeter: out of order as a whole, its conversations wait; the next trial in 3 s: OSError: no" in told
    assert "plugin greeter: holds alice conv_held behind a dead letter (msg_1)" in told
    assert "plugin greeter: gave a timer of alice up: ValueError: no" in told
    assert "healthy" not in told
    assert ask("release", "greeter", "conv_held").stdout == "greeter goes on in conv_held\n"
    assert json.loads(ask("release", "greeter", "conv_held", "--as", "alice", "--json").stdout) == {"released": 1}
    refused = ask("release", "greeter", "conv_other")
    assert (refused.exit_code, refused.stdout) == (1, "greeter does not hold conv_other\n")


def test_a_plugin_whose_process_is_down_is_shown_with_the_reason(ask: Callable[..., Result], served: Any) -> None:
    up = {"up": True, "pid": 7, "restarts": 0, "reason": "", "next_start_in_s": None}
    down = {"up": False, "pid": None, "restarts": 3, "reason": "plugin a:\nno module", "next_start_in_s": 12.0}
    starting = {**down, "next_start_in_s": None}
    served.daemon.plugins = [
        {"name": "a", "breaker": "closed", "worker": down},
        {"name": "b", "breaker": "closed", "worker": starting},
        {"name": "healthy", "breaker": "closed", "worker": up},
        {"name": "plain", "breaker": "closed", "worker": None},
    ]
    told = ask("status").stdout
    assert "plugin a: has no process, the next starts in 12 s: plugin a:\\nno module" in told
    assert "plugin b: has no process, the next is being started: plugin a:" in told
    assert "healthy" not in told
    assert "plain" not in told


def test_no_gaps_are_no_rows(ask: Callable[..., Result]) -> None:
    result = ask("gaps")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no open gaps\n")
    assert json.loads(ask("gaps", "--json").stdout) == []


# outbox and dead


@pytest.mark.parametrize(
    ("group", "verbs"), [("outbox", ["ls", "show", "retry", "drop"]), ("dead", ["ls", "show", "replay", "drop"])]
)
def test_every_verb_of_a_group_is_in_its_help_with_a_whole_sentence(group: str, verbs: list[str]) -> None:
    lines = agentd_command(group, "--help").stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == verbs
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
    for verb in verbs:
        assert agentd_command(group, verb, "--help").exit_code == 0


def test_the_outbox_is_a_line_per_send(ask: Callable[..., Result], served: Any) -> None:
    lines = ask("outbox", "ls").stdout.splitlines()
    assert lines[0].split() == ["KEY", "IDENTITY", "TARGET", "STATE", "FOR", "ATTEMPTS", "WHY", "TEXT"]
    assert lines[1].split()[:4] == ["agentd-7-0", "alice", "@bob", "refused"]
    assert "403 BLOCKED" in lines[1]
    assert lines[1].endswith("hello \\u001b[2Jbob"), "its words cannot steer the terminal"
    every = ("ready", "sending", "unknown", "sent", "refused", "expired", "dropped")
    assert json.loads(ask("outbox", "ls", "alice", "--all", "--limit", "5", "--json").stdout) == list(
        served.daemon.sends.values()
    )
    ask("outbox", "ls", "--only", "refused", "--only", "expired")
    assert [asked[1:] for asked in served.daemon.asked[1:]] == [
        ("alice", every, 5),
        (None, ("refused", "expired"), 100),
    ]


def test_a_send_whose_outcome_only_people_can_find_out_says_so(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.sends["agentd-7-0"].update(state="unknown", needs_decision=True)
    assert "unknown: decide" in ask("outbox", "ls").stdout
    assert "unknown: decide" in ask("outbox", "show", "agentd-7-0").stdout


def test_one_send_is_shown_with_the_platforms_answer_and_its_words(ask: Callable[..., Result], served: Any) -> None:
    output = ask("outbox", "show", "agentd-7-0", "--as", "alice").stdout
    told = dict(line.split("  ", 1) for line in output.split("\n\n")[0].splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert (told["code"], told["request"], told["attempts"]) == ("BLOCKED", "req_7", "2")
    assert output.endswith("hello\n\\u001b[2Jbob\n")
    assert served.daemon.asked == [("outbox_show", "alice", "agentd-7-0")]
    as_json = ask("outbox", "show", "agentd-7-0", "--json")
    assert json.loads(as_json.stdout) == served.daemon.sends["agentd-7-0"]


def test_a_send_of_data_is_shown_as_json(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.sends["agentd-7-0"]["content"] = {"data": {"n": 1}}
    assert '"n": 1' in ask("outbox", "show", "agentd-7-0").stdout


def test_a_retry_names_what_leaves_again(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.sends["k2"] = served.daemon.sends["agentd-7-0"]
    result = ask("outbox", "retry", "agentd-7-0", "k2")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "agentd-7-0 leaves again\nk2 leaves again\n"
    assert [row["state"] for row in json.loads(ask("outbox", "retry", "k2", "--json").stdout)] == ["ready"]


@pytest.mark.parametrize("words", [("outbox", "drop", "agentd-7-0"), ("dead", "drop", "3")])
def test_nothing_is_dropped_where_nobody_can_be_asked_unless_told(
    ask: Callable[..., Result], served: Any, words: tuple[str, ...]
) -> None:
    result = ask(*words)
    assert result.exit_code == 2
    assert "nobody is there to ask; add --yes" in result.stderr
    assert served.daemon.asked == []
    assert "is dropped" in ask(*words, "--yes").stderr
    assert len(served.daemon.asked) == 1


@pytest.mark.parametrize(("answer", "code", "dropped"), [("y\n", 0, True), ("n\n", 1, False)])
def test_on_a_terminal_a_drop_is_asked_for(served: Any, answer: str, code: int, dropped: bool) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "outbox", "drop", "agentd-7-0"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTD_STATE": str(served.path.parent)},
        text=True,
    )
    os.close(theirs)
    with open(ours, "wb", buffering=0) as terminal:
        terminal.write(answer.encode())
        _, told = process.communicate(timeout=10)
    assert process.returncode == code
    assert "never send message agentd-7-0?" in told
    assert ("agentd: nothing was done\n" in told) is not dropped
    assert bool(served.daemon.asked) is dropped


def test_a_question_that_is_interrupted_is_a_no_with_the_code_for_it(served: Any) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "agentd", "dead", "drop", "3"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTD_STATE": str(served.path.parent)},
    ) as process:
        os.close(theirs)
        assert process.stderr is not None
        asked = b""
        while not asked.endswith(b"[y/N]: "):
            asked += process.stderr.read(1)
        # Python notices a signal that comes just before it reads only once something was typed.
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=10)
        finally:
            process.kill()
    os.close(ours)
    assert (process.returncode, rest, served.daemon.asked) == (130, b"\n", [])


def test_a_decision_that_comes_too_late_fails_with_the_remedy(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ControlError(409, "NOTHING_TO_DROP", "k is sent", "nothing can be dropped any more")
    result = ask("outbox", "drop", "agentd-7-0", "--yes", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "agentd: k is sent; nothing can be dropped any more\n"


def test_dead_letters_are_a_line_each(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.letters[4] = {**served.daemon.letters[3], "number": 4, "dropped_at": "2026-01-02T03:06:05.000Z"}
    lines = ask("dead", "ls", "--all").stdout.splitlines()
    assert lines[0].split() == ["NUMBER", "IDENTITY", "CONVERSATION", "PLUGIN", "DIED", "ATTEMPTS", "ERROR"]
    assert lines[1].split()[:4] == ["3", "alice", "conv_1", "echo"]
    assert lines[1].endswith("ValueError: no")
    assert lines[2].endswith("(dropped) ValueError: no")
    assert json.loads(ask("dead", "ls", "bob", "--limit", "5", "--json").stdout) == list(served.daemon.letters.values())
    assert served.daemon.asked == [("dead", None, True, 100), ("dead", "bob", False, 5)]


def test_a_dead_letter_is_shown_with_its_event_and_traceback(ask: Callable[..., Result]) -> None:
    output = ask("dead", "show", "3").stdout
    told = dict(line.split("  ", 1) for line in output.split("\n\n")[0].splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert (told["plugin"], told["conversation"], told["event"], told["sender"]) == (
        "echo 1.2",
        "conv_1 #9",
        "msg_9",
        "@eve",
    )
    assert "\n\npoison\\u001b\n\nTraceback ...\n  ValueError: no\n\n" in output
    assert output.splitlines()[-4:] == [
        "to have it delivered again, once the cause is mended:",
        "  agentd dead replay 3",
        "to take it off the list:",
        "  agentd dead drop 3",
    ]
    assert json.loads(ask("dead", "show", "3", "--json").stdout)["traceback"].startswith("Traceback")


def test_a_dead_letter_that_holds_a_conversation_names_what_lets_it_go_on(
    ask: Callable[..., Result], served: Any
) -> None:
    served.daemon.letters[3]["held"] = True
    lines = ask("dead", "show", "3").stdout.splitlines()
    assert lines[-4:] == [
        "to have it delivered again, once the cause is mended:",
        "  agentd dead replay 3",
        "echo stands still in this conversation until then; to let it go on without this event:",
        "  agentd release echo conv_1 --as alice",
    ]
    served.daemon.letters[3]["dropped_at"] = "2026-01-02T03:06:05.000Z"
    assert "agentd dead" not in ask("dead", "show", "3").stdout


def test_dead_letters_are_delivered_again_once_somebody_agreed(ask: Callable[..., Result], served: Any) -> None:
    assert ask("dead", "replay", "3").exit_code == 2
    assert served.daemon.asked == []
    result = ask("dead", "replay", "3", "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "3 is off the list, and its event is delivered again\n"
    assert json.loads(ask("dead", "replay", "3", "--yes", "--json").stdout)[0]["dropped_at"] is not None
    assert served.daemon.asked == [("dead_replay", 3)] * 2


def test_nothing_held_is_no_rows(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.sends = served.daemon.letters = {}
    for words, told in (
        (("outbox", "ls"), "no send waits, was refused or expired; --all lists the others too\n"),
        (("outbox", "ls", "--only", "unknown", "--only", "expired"), "no send is unknown or expired\n"),
        (("outbox", "ls", "--all"), "nothing was ever sent\n"),
        (("dead", "ls"), "no dead letters\n"),
    ):
        result = ask(*words)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", told)
        assert json.loads(ask(*words, "--json").stdout) == []


# pause and resume


def test_a_pause_tells_its_end_and_how_to_go_on(ask: Callable[..., Result], served: Any) -> None:
    result = ask("pause", "@bob", "--as", "alice", "--for", "2h")
    assert result.stdout == "@bob of alice is paused for 2 h 0 min: its mail is kept, and no handler runs\n"
    assert result.stderr == "go on: agentd resume @bob --as alice\n"
    assert "is paused until it is resumed:" in ask("pause", "conv_1").stdout
    assert json.loads(ask("pause", "conv_1", "--json").stdout)["until"] is None
    assert ask("resume", "conv_1").stdout.startswith("conv_1 of alice goes on; it was paused for ")
    assert json.loads(ask("resume", "conv_1", "--json").stdout)["reason"] == "by command"
    assert served.daemon.asked[:2] == [("pause", "alice", "@bob", 7_200.0), ("pause", None, "conv_1", None)]


@pytest.mark.parametrize("given", ["2", "h", "0s", "-1h", "2 h", "1e3s", "tomorrow"])
def test_a_span_that_is_none_is_refused(ask: Callable[..., Result], served: Any, given: str) -> None:
    result = ask("pause", "conv_1", "--for", given)
    assert (result.exit_code, "is no span of time" in result.stderr) == (2, True)
    assert served.daemon.asked == []


def test_what_cannot_be_resumed_fails_with_the_remedy(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ControlError(409, "NOT_PAUSED", "conv_1 is not paused", "see which are: agentd status")
    result = ask("resume", "conv_1")
    assert (result.exit_code, result.stderr) == (
        1,
        "agentd: conv_1 is not paused; see which are: agentd status\n",
    )


def test_status_tells_what_is_paused_why_and_until_when(ask: Callable[..., Result], served: Any) -> None:
    from tests.conftest import pause_row

    served.daemon.pauses = [pause_row("conv_1", until="2999-01-01T00:00:00Z"), pause_row("conv_2", reason="a\x1b")]
    lines = ask("status").stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("PAUSED"))
    assert lines[at].split() == ["PAUSED", "IDENTITY", "FOR", "UNTIL", "WHY"]
    assert lines[at + 1].endswith("by command")
    assert " in " in lines[at + 1]
    assert lines[at + 2].split()[-2:] == ["resumed", "a\\u001b"]
    served.daemon.pauses = [pause_row(f"conv_{number}") for number in range(1_025)]
    assert "and 1,005 more; see: agentd status --json" in ask("status").stdout.splitlines()


def test_status_tells_how_far_behind_the_handlers_are(ask: Callable[..., Result], served: Any) -> None:
    works = {
        "name": "echo",
        "version": "1.2",
        "breaker": "closed",
        "lanes": 1_234,
        "running": 2,
        "held": [],
        "timers": 1,
    }
    served.daemon.plugins = [works, {**works, "name": "broken", "breaker": "open"}]
    lines = [line.split() for line in ask("status").stdout.splitlines()]
    assert ["PLUGIN", "VERSION", "STATE", "LANES", "RUNNING", "HELD", "TIMERS"] in lines
    assert ["echo", "1.2", "works", "1,234", "2", "0", "1"] in lines
    assert ["broken", "1.2", "out", "of", "order", "1,234", "2", "0", "1"] in lines
    served.daemon.undispatched = {"undispatched": 2_000, "undispatched_bytes": 3_145_728, "shedding": ""}
    assert "2,000 events wait in memory (3.1 MB)" in ask("status").stdout
    served.daemon.undispatched["shedding"] = "handlers are too far behind"
    told = "new messages stay with the platform: handlers are too far behind"
    assert told in ask("status").stdout.splitlines()
    served.daemon.undispatched = {"undispatched": 1, "undispatched_bytes": 999, "shedding": ""}
    assert "1 event waits in memory (999 B)" in ask("status").stdout.splitlines()


# replay


def test_a_replay_counts_and_is_done_once_somebody_agreed(ask: Callable[..., Result], served: Any) -> None:
    words = ("replay", "--plugin", "echo")
    refused = ask(*words)
    assert refused.exit_code == 2
    assert "nobody is there to ask; add --yes" in refused.stderr
    assert [asked[1] for asked in served.daemon.asked] == ["count"]
    result = ask(*words, "--as", "alice", "--conversation", "@bob", "--from", "17", "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "handlers of echo match 2,000 of 3,000 events, in 2 conversations",
        "each match is handled again, and may send again; --dry-run shows what",
        "1 event cannot be read any more",
        "2 conversations set back, 3,000 events to go; see: agentd status",
    ]
    assert served.daemon.asked[1:] == [
        ("replay", step, "echo", "alice", "@bob", 17, None) for step in ("count", "set_back")
    ]


def test_a_replay_in_json_is_what_the_daemon_said_but_for_its_progress(ask: Callable[..., Result], served: Any) -> None:
    result = ask("replay", "--plugin", "echo", "--yes", "--json")
    replays = served.daemon.replays
    assert [json.loads(line) for line in result.stdout.splitlines()] == [replays["count"][-1], *replays["set_back"][2:]]
    shown = ask("replay", "--plugin", "echo", "--dry-run", "--json")
    told = [line for line in replays["rehearse"][1:] if "read" not in line]
    assert [json.loads(line) for line in shown.stdout.splitlines()] == told


def test_what_a_replay_waits_for_is_told_before_and_after(ask: Callable[..., Result], served: Any) -> None:
    from tests.conftest import replay_lines

    wait = {
        "identity": "alice",
        "conversation": "conv_1",
        "why": "paused (by command)",
        "remedy": "agentd resume conv_1",
    }
    served.daemon.replays = replay_lines(waiting=3, waits=[wait])
    lines = ask("replay", "--plugin", "echo", "--yes").stderr.splitlines()
    waiting = ["  conv_1 of alice: paused (by command)", "    agentd resume conv_1", "  and 2 conversations more"]
    assert lines[3:] == [
        "some conversations stand still, and a replay waits there until they go on:",
        *waiting,
        "2 conversations set back, 3,000 events to go; see: agentd status",
        "not set back yet, but once they go on, unless the daemon is stopped before:",
        *waiting,
    ]


def test_where_nothing_matches_nothing_is_set_back(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.replays["count"][-1]["matches"] = 0
    result = ask("replay", "--plugin", "echo")
    assert (result.exit_code, result.stderr) == (0, "no handler of echo matches any of 3,000 events\n")
    assert [asked[1] for asked in served.daemon.asked] == ["count"]


def test_a_dry_run_shows_each_effect_and_a_sum(ask: Callable[..., Result]) -> None:
    result = ask("replay", "--plugin", "echo", "--dry-run")
    effects = [
        "  handled by greet, count",
        "  sends at once to @bob: hello\\u001b",
        "  sends to @bob: hello\\u001b",
        "  sends to @bob as bob: hello\\u001b",
        "  keeps count",
        "  keeps names for the whole plugin",
        "  removes old",
        "  wants to be woken in 5 s",
        "  wants to be woken at 2026-01-02T",
        '  outcome: greeted {"n": 1}',
        "  outcome: counted",
    ]
    assert result.stdout.splitlines() == [
        "conv_1 #9 position 17, @eve\\u001b: hello",
        *effects,
        "conv_1 #9 position 17, @eve\\u001b: hello",
        *effects[:2],
        "  FAILS in greet: ValueError: no",
    ]
    assert result.stderr.splitlines() == [
        "nothing is sent or stored, but a handler's own requests and files happen",
        "2,000 of 3,000 events match, in 2 conversations: 4 sends, 1 failure",
        "1 event cannot be read any more",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "17"], "--from 17 is a seq, which is a place in one conversation; add --conversation"),
        (["--from", "yesterday"], "is no moment"),
        ([], "Missing option '--plugin'"),
    ],
)
def test_a_replay_that_makes_no_sense_is_a_matter_of_usage(
    ask: Callable[..., Result], served: Any, words: list[str], told: str
) -> None:
    result = ask("replay", *(["--plugin", "echo"] if words else []), *words)
    assert (result.exit_code, told in result.stderr) == (2, True)
    assert served.daemon.asked == []


def test_a_replay_shows_its_progress_on_a_terminal(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentd.cli import replaying
    from agentd.control.client import Client

    monkeypatch.setattr(replaying, "_PROGRESS_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    chosen = replaying.Chosen("echo", None, None, None, None)
    replaying.replay(Client(served.path), chosen, yes=True, as_json=False)
    steps = capsys.readouterr().err.split("\r\x1b[K")
    assert "2,000 of 3,000 events read" in steps
    assert "1 conversation set back" in steps
    assert steps[-1].startswith("2 conversations set back, 3,000 events to go")


# check


def test_check_sums_up_a_configuration_that_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text(
        '[identity.alice]\nurl = "https://api.agentchat.me"\nkey = { env = "K" }\nplugins = ["greeter"]\n'
        '[plugin.greeter]\nuse = "echo"\n[plugin.idle]\nuse = "echo"\n'
    )
    result = agentd_command("check", "--config", str(file), K="a-key-for-alice")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"ok: {file}",
        f"state: {tmp_path}/state",
        "identity alice: agentchat at https://api.agentchat.me, plugins: greeter",
    ]
    assert result.stderr == "note: no identity lists plugin idle\n"
    summary = json.loads(agentd_command("check", "--json", AGENTD_CONFIG=str(file), K="a-key-for-alice").stdout)
    assert (summary["ok"], summary["unused_plugins"]) == (True, ["idle"])


def test_check_tells_every_problem_and_ends_with_the_code_for_it(tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text("[agentd]\nstatus = 1\nlog_level = 2\n")
    result = agentd_command("check", "--config", str(file))
    assert (result.exit_code, result.stdout) == (78, "")
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == ["2", "3"]
    as_json = agentd_command("check", "--config", str(file), "--json")
    assert as_json.exit_code == 78
    assert json.loads(as_json.stdout)["problems"] == result.stderr.splitlines()


def test_check_loads_the_plugins_that_are_used_and_tells_what_is_wrong_with_each(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "loud.py").write_text(
        "from agentd.plugin import Plugin\nprint('loading')\nplugin = Plugin('loud')\n@plugin.setup\n"
        "async def setup(ctx): print('set up')\n"
    )
    file = tmp_path / "agentd.toml"
    file.write_text(
        '[identity.alice]\nurl = "https://api.agentchat.me"\nkey = { env = "K" }\nplugins = ["broken", "log", "loud"]\n'
        '[plugin.broken]\nuse = "./broken.py"\n[plugin.loud]\nuse = "./loud.py"\n[plugin.log]\nuse = "log"\n'
        '[plugin.idle]\nuse = "log"\n'
    )
    result = agentd_command("check", "--config", str(file), "--json", K="a-key-for-alice")
    assert result.exit_code == 78
    broken, log = json.loads(result.stdout)["problems"]
    assert broken.startswith(f"{tmp_path}/broken.py:1: plugin broken: importing it failed: ModuleNotFoundError")
    assert log == "plugin.log.config.file: is missing; add file = ... (text in quotes)"
    assert result.stderr.splitlines() == ["loading", broken, log]


def test_check_as_root_runs_nothing_that_others_may_write(tmp_path: Path) -> None:
    plugin, file = tmp_path / "theirs.py", tmp_path / "agentd.toml"
    plugin.write_text("print('loaded')\nfrom agentd.plugin import Plugin\nplugin = Plugin('theirs')\n")
    plugin.chmod(0o666)
    file.write_text(
        '[identity.alice]\nurl = "https://api.agentchat.me"\nkey = { env = "K" }\nplugins = ["theirs"]\n'
        '[plugin.theirs]\nuse = "./theirs.py"\nsecrets = { model = { env = "K" } }\n'
    )
    result = agentd_command("check", "--config", str(file), K="a-key-for-alice")
    assert result.exit_code == 0
    told = (
        "loaded\n"
        if os.geteuid()
        else f"note: plugin theirs was not loaded, since others than root may write {plugin}\n"
    )
    assert result.stderr == told


def test_check_without_a_file_says_what_a_run_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = agentd_command("check").stdout
    assert f"state: {tmp_path}/state" in output
    assert "starts its own hub" in output


# reload


def test_reload_tells_what_changed_and_what_waits(ask: Callable[..., Result], served: Any) -> None:
    result = ask("reload")
    assert result.stdout == "identity added: bob\nidentity rekeyed: alice\nplugin reloaded: echo\n"
    assert result.stderr == (
        "note: agentd.state takes effect at the next start\n"
        "note: carol: echo: a handler still runs, and ends as it ends\n"
    )
    assert json.loads(ask("reload", "--json").stdout) == {"ok": True, **served.daemon.reloaded}
    nothing: dict[str, Any] = {"identities": {}, "plugins": {}, "at_next_start": [], "still_running": []}
    served.daemon.reloaded = nothing
    assert ask("reload").stdout == "nothing has changed\n"


def test_a_refused_configuration_is_told_whole_with_its_exit_code(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ConfigError(["a.toml:3: identity.x: is bad", "p.py:1: plugin p: is bad"])
    result = ask("reload")
    assert (result.exit_code, result.stdout) == (78, "")
    assert result.stderr.splitlines() == list(served.daemon.error.problems)
    result = ask("reload", "--json")
    assert (result.exit_code, json.loads(result.stdout)["problems"]) == (78, list(served.daemon.error.problems))


# upgrade


@pytest.mark.parametrize(
    ("turns", "noted"),
    [
        (0, ""),
        (1, "note: 1 turn that has begun ends there; see: agentd status\n"),
        (2, "note: 2 turns that have begun end there; see: agentd status\n"),
    ],
)
def test_upgrade_tells_who_runs_now_and_what_still_runs_before_it(
    ask: Callable[..., Result], served: Any, turns: int, noted: str
) -> None:
    served.daemon.turns = turns
    result = ask("upgrade")
    assert result.stdout == "agentd 0.2.0 has taken over, pid 43\n"
    assert result.stderr == f"before it: agentd 0.1.0, pid 42\n{noted}"
    assert json.loads(ask("upgrade", "--json").stdout)["pid"] == 43


def test_an_upgrade_that_is_refused_tells_why_and_what_to_do(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ControlError(409, "NOT_UPGRADED", "it is stopping", "wait for its end, then start")
    result = ask("upgrade")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "it is stopping; wait for its end, then start" in result.stderr


def test_status_tells_why_a_plugin_was_not_reloaded(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.plugins = [{"name": "p", "reload_error": "p.py:3: plugin p: invalid syntax"}]
    told = "plugin p: not reloaded, the generation before runs: p.py:3: plugin p: invalid syntax\n"
    assert ask("status").stdout.endswith(told)


# Verbs that start something


class Called:
    """Stands for a module with a `run`, and remembers how it was called."""

    def __init__(self) -> None:
        self.with_: Mapping[str, Any] = {}
        self.settings: Any = None

    def run(self, *settings: Any, **options: Any) -> int:
        self.settings, self.with_ = settings, options
        return 3


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called()
    for name in ("daemon", "demo"):
        monkeypatch.setattr(agentd, name, called, raising=False)
        monkeypatch.setitem(sys.modules, f"agentd.{name}", called)
    return called


def test_run_gives_the_checked_settings_and_their_file(called: Called, tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text("")
    result = agentd_command("run", "--config", str(file), "--state", str(tmp_path / "mail"))
    assert result.exit_code == 3
    assert called.settings[0].agentd.state == str(tmp_path / "mail")
    assert (called.with_["config_path"], called.with_["watch_files"], called.with_["take_over"]) == (file, False, False)
    assert called.with_["reread"]() == called.settings[0]
    agentd_command("run", "--reload", "--config", str(file))
    assert called.with_["watch_files"] is True
    agentd_command("run", "--take-over", "--config", str(file))
    assert called.with_["take_over"] is True


def test_run_does_not_start_with_a_broken_configuration(called: Called, tmp_path: Path) -> None:
    assert agentd_command("run", "--config", str(tmp_path / "gone.toml")).exit_code == 78
    assert called.settings is None


def test_a_state_folder_that_cannot_be_made_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "agentd", "run", "--state", str(tmp_path / "file" / "below")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78
    assert "the state folder cannot be made (Not a directory); name another with --state" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("push_drop", "'push_drop' is not NAME=VALUE"),
        ("pus_drop=0.1", "there is no fault 'pus_drop'; did you mean push_drop?"),
        ("zzz=1", "there is no fault 'zzz'; known: "),
        ("push_drop=much", "a fault's value is a number"),
        ("push_drop=1.5", "push_drop=1.5 is no chance; give a number from 0 to 1"),
        ("push_drop=nan", "push_drop=nan is no chance"),
    ],
)
def test_a_fault_that_makes_no_sense_is_a_matter_of_usage(fault: str, told: str) -> None:
    result = agentd_command("hub", "--fault", fault)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_store_in_a_folder_that_is_not_there_is_a_matter_of_usage(tmp_path: Path) -> None:
    result = agentd_command("hub", "--store", str(tmp_path / "gone" / "hub.db"))
    assert result.exit_code == 2
    assert "does not exist; make it first" in result.stderr


def test_a_store_that_is_no_file_is_told_in_one_line(tmp_path: Path) -> None:
    words = ["hub", "--store", str(tmp_path), "--port", "0"]
    done = subprocess.run([sys.executable, "-m", "agentd", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"agentd: {tmp_path} cannot be the hub's store (Is a directory); name another file\n"


def test_faults_become_a_plan() -> None:
    from agentd.cli.serving import fault_plan

    plan = fault_plan(7, {"push_drop": "0.25", "delay_max_s": "3"})
    assert (plan.seed, plan.push_drop, plan.delay_max_s, plan.push_cut) == (7, 0.25, 3.0, 0.0)


@pytest.fixture
def hub() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts hubs as processes, and ends those that the test has left."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agentd", "hub", *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_hub_has_the_accounts_that_are_named_and_keeps_their_keys(
    hub: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    keys = []
    for words in (("--agent", "alice"), ("--agent", "alice", "--agent", "bob")):
        process = hub("--port", "0", "--store", "hub.db", *words, cwd=tmp_path)
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("hub at ").strip()
        file = tmp_path / "hub-keys" / "alice.key"
        assert file.stat().st_mode & 0o777 == 0o600
        keys.append(file.read_text())
        me = urllib.request.Request(address + "/v1/agents/me", headers={"Authorization": f"Bearer {keys[-1]}"})
        with urllib.request.urlopen(me, timeout=10) as answer:
            assert json.load(answer)["handle"] == "alice"
        process.terminate()
        _, told = process.communicate(timeout=10)
    assert keys[0] == keys[1]
    assert told == "@alice: the key is in hub-keys/alice.key\n@bob: the key is in hub-keys/bob.key\n"
    process = hub("--port", "0", "--agent", "No One", cwd=tmp_path)
    assert "--agent No One: " in process.communicate(timeout=10)[1]
    assert process.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hub_names_its_address_and_stops_at_a_signal(
    hub: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = hub("--port", "0", "--fault", "push_drop=0.5")
    assert process.stdout is not None
    address = re.fullmatch(r"hub at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
    assert address is not None
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(address[1] + "/v1/agents/me", timeout=10)
    answer.value.close()
    assert answer.value.code == 401
    process.send_signal(number)
    assert (*process.communicate(timeout=10), process.returncode) == ("", "", 0)


def test_a_port_that_is_taken_is_told_with_the_remedy(hub: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output, errors = (process := hub("--port", str(port))).communicate(timeout=10)
    assert (process.returncode, output) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port} (" in errors
    assert "take another --port" in errors


def test_demo_runs_the_acceptance_unless_told_otherwise(called: Called) -> None:
    assert agentd_command("demo", "--seed", "9", "--json").exit_code == 3
    assert called.with_ == {
        "messages": 5_000,
        "identities": 3,
        "conversations": 40,
        "kills": 5,
        "seed": 9,
        "as_json": True,
    }


# The command as a whole


@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "--json"], ["send", "@x", "hi"], ["tail"], ["gaps"], ["outbox", "ls"], ["dead", "ls"]],
)
def test_without_a_daemon_every_client_verb_says_how_to_start_one(words: list[str], tmp_path: Path) -> None:
    result = agentd_command(*words, "--state", str(tmp_path))
    assert (result.exit_code, result.stdout) == (69, "")
    assert result.stderr.startswith(f"agentd: no daemon answers at {tmp_path}/control.sock; start one with: agentd run")


@pytest.mark.parametrize("words", [["statuss"], ["send", "@x"], ["gaps", "--limit", "0"], ["tail", "--since", "x"]])
def test_wrong_words_end_with_the_code_for_usage(words: list[str]) -> None:
    assert agentd_command(*words).exit_code == 2


def test_every_verb_is_in_the_help_with_a_whole_sentence() -> None:
    asking = [
        "status",
        "reload",
        "upgrade",
        "dashboard",
        "send",
        "tail",
        "gaps",
        "export",
        "import",
        "explain",
        "pause",
        "resume",
        "replay",
        "outbox",
        "dead",
        "release",
    ]
    keeping = ["backup", "restore", "vacuum", "retention", "upgrade-check", "doctor", "service", "completion"]
    verbs = ["run", "check", *asking, *keeping, "new", "dev", "hub", "demo"]
    in_a_usual_terminal = agentd_command("--help", COLUMNS="80").stdout
    lines = in_a_usual_terminal.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == verbs
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)
    for verb in verbs:
        assert agentd_command(verb, "--help").exit_code == 0


def test_the_version_is_told() -> None:
    assert agentd_command("--version").stdout == f"agentd, version {agentd.__version__}\n"


# export and explain


LINES = [b'{"position":1,"text":"\xc3\xbc"}\n', b'{"position":2}\n']


def scripted_export(served: Any, unreadable: int = 0) -> None:
    last = b'{"exported":2,"unreadable":%d}\n' % unreadable
    served.daemon.exported = [b'{"up_to":2}\n', b"".join(LINES), last]


def test_an_export_goes_to_stdout_and_its_sum_beside_it(ask: Callable[..., Result], served: Any) -> None:
    scripted_export(served)
    result = ask("export", "--as", "alice", "--conversation", "conv_1", "--since", "2026-01-01")
    assert result.exit_code == 0
    assert result.stdout_bytes == b"".join(LINES)
    assert result.stderr == "exported 2 events\n"
    assert served.daemon.asked == [("export", "alice", "conv_1", 1_767_225_600.0)]


def test_an_export_into_a_file_is_there_for_its_owner_only(
    ask: Callable[..., Result], served: Any, tmp_path: Path
) -> None:
    scripted_export(served, unreadable=1)
    file = tmp_path / "case.jsonl"
    result = ask("export", "--to", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        f"exported 2 events to {file}",
        "left out 1: their identities are not configured, or they cannot be read any more",
    ]
    assert file.read_bytes() == b"".join(LINES)
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_export_gets_a_file_of_its_own_whatever_lies_beside(
    ask: Callable[..., Result], served: Any, tmp_path: Path
) -> None:
    scripted_export(served)
    left = tmp_path / "case.jsonl.part"
    left.write_text("mine")
    left.chmod(0o644)
    assert ask("export", "--to", str(tmp_path / "case.jsonl")).exit_code == 0
    assert left.read_text() == "mine"
    assert (tmp_path / "case.jsonl").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.glob("*case*")) == ["case.jsonl", "case.jsonl.part"]


def test_an_export_into_a_pipe_goes_through_it(ask: Callable[..., Result], served: Any, tmp_path: Path) -> None:
    scripted_export(served)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert ask("export", "--to", str(pipe)).exit_code == 0
        assert os.read(reading, 65_536) == b"".join(LINES)
    finally:
        os.close(reading)
    assert pipe.is_fifo(), "nothing takes its place"


def test_an_export_that_is_broken_off_leaves_the_file_as_it_was(
    ask: Callable[..., Result], served: Any, tmp_path: Path
) -> None:
    served.daemon.exported = [b'{"up_to":2}\n', LINES[0], b"gone"]
    file = tmp_path / "case.jsonl"
    file.write_text("before")
    result = ask("export", "--to", str(file))
    assert result.exit_code == 69
    assert "broke off" in result.stderr
    assert file.read_text() == "before"
    assert list(tmp_path.glob("case.jsonl?*")) == []

    elsewhere = tmp_path / "no folder" / "case.jsonl"
    refused = ask("export", "--to", str(elsewhere))
    assert (refused.exit_code, "name another file with --to" in refused.stderr) == (1, True)


def test_two_exports_into_one_file_at_a_time_are_each_whole(tmp_path: Path) -> None:
    file = tmp_path / "case.jsonl"
    with _written(file) as one:
        one(b"one\n")
        with _written(file) as other:
            other(b"other\n")
        assert file.read_bytes() == b"other\n"
    assert file.read_bytes() == b"one\n"
    assert [each.name for each in tmp_path.iterdir()] == ["case.jsonl"]


def test_an_export_shows_its_progress_on_a_terminal(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentd.cli import recording
    from agentd.control.client import Client

    scripted_export(served)
    monkeypatch.setattr(recording, "_PROGRESS_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    recording.export(Client(served.path), None, None, None, tmp_path / "case.jsonl")
    steps = capsys.readouterr().err.split("\r\x1b[K")
    assert steps == ["", "1 event, 50 %", "2 events, 100 %", f"exported 2 events to {tmp_path / 'case.jsonl'}\n"]


@pytest.mark.parametrize("given", ["yesterday", "2x", "2026-13-01", "9" * 400 + "d"])
def test_a_time_that_is_none_is_refused(ask: Callable[..., Result], served: Any, given: str) -> None:
    result = ask("export", "--since", given)
    assert (result.exit_code, "is no moment" in result.stderr) == (2, True)
    assert served.daemon.asked == []


def test_a_time_may_be_so_long_ago(ask: Callable[..., Result], served: Any) -> None:
    scripted_export(served)
    before = datetime.now(UTC).timestamp() - 7_200.0
    ask("export", "--since", "2h")
    [(_, _, _, since_s)] = served.daemon.asked
    assert before - 1 <= since_s <= datetime.now(UTC).timestamp() - 7_199.0


def test_explain_tells_each_handler_and_filter(ask: Callable[..., Result], served: Any) -> None:
    result = ask("explain", "msg_9", "--plugin", "echo")
    assert result.stdout.splitlines() == [
        "msg_9 from @eve\\u001b, identity alice, conv_1 #9, position 17, late",
        "received 2026-01-02T03:04:05.000Z: hello",
        "",
        "plugin echo: handled",
        "  part (/p.py:3): does not match",
        '    + sender: wanted ["@ann", "@eve"], had "eve"',
        '    - text: wanted "^bye", had "hello"',
        '    - where: wanted "is_late", not asked',
        "  greet (/p.py:9): matches",
        '    + sender: wanted ["@ann", "@eve"], had "eve"',
        "  check (/p.py:12): cannot be asked: a filter raised",
        "    ! where: wanted \"is_late\", raised KeyError: 'x'",
    ]
    assert served.daemon.asked == [("explain", "msg_9", None, "echo")]
    assert json.loads(ask("explain", "17", "--as", "alice", "--json").stdout) == served.daemon.explained


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        ({"state": "waiting"}, "waiting"),
        ({"state": "waiting", "behind": 16}, "waiting behind position 16, which fails"),
        ({"state": "waiting", "replays": 1}, "waiting again"),
        ({"state": "handled", "replays": 2}, "handled again"),
        ({"state": "running"}, "running at this moment"),
        ({"state": "running", "attempts": 2, "replays": 1}, "running again at this moment, attempt 3"),
        ({"state": "paused"}, "waiting, since its conversation is paused"),
        ({"state": "passed"}, "passed: it had grown stale, and newer mail said more"),
        (
            {"state": "aside", "attempts": 0, "not_before": "2026-01-02T03:04:05.000Z"},
            "comes by itself not before 2026-01-02T03:04:05.000Z, while the conversation goes on",
        ),
        (
            {"state": "aside", "attempts": 1, "error": "ValueError: no", "not_before": "2026-01-02T03:04:05.000Z"},
            "comes by itself not before 2026-01-02T03:04:05.000Z, while the conversation goes on, after 1 attempt: "
            "ValueError: no",
        ),
        (
            {"state": "failing", "attempts": 1, "error": None, "not_before": "2026-01-02T03:04:05.000Z"},
            "failing, next attempt not before 2026-01-02T03:04:05.000Z, after 1 attempt: the process died",
        ),
        ({"state": "passed_over"}, "passed over: no handler matches"),
        ({"state": "never_offered"}, "never offered: it is older than the plugin's service for this identity"),
        (
            {"state": "failing", "attempts": 2, "error": "ValueError: no", "not_before": "2026-01-02T03:04:05.000Z"},
            "failing, next attempt not before 2026-01-02T03:04:05.000Z, after 2 attempts: ValueError: no",
        ),
        (
            {"state": "dead", "attempts": 5, "error": "ValueError: no", "letter": 3},
            "dead letter 3 after 5 attempts: ValueError: no; see: agentd dead show 3",
        ),
        (
            {"state": "held", "attempts": 5, "error": "ValueError: no", "letter": 3},
            "dead letter 3, behind which the conversation is held, after 5 attempts: ValueError: no; "
            "see: agentd dead show 3",
        ),
    ],
)
def test_explain_tells_what_became_of_the_event(
    ask: Callable[..., Result], served: Any, fate: dict[str, Any], told: str
) -> None:
    from tests.conftest import explanation

    served.daemon.explained = explanation(**fate)
    assert f"plugin echo: {told}" in ask("explain", "17").stdout.splitlines()


def test_explain_tells_what_turns_came_to_and_whether_the_conversation_is_paused(
    ask: Callable[..., Result], served: Any
) -> None:
    from tests.conftest import explanation, pause_row

    at = "2026-01-02T03:04:05.000Z"
    outcome = {"word": "greeted", "data": {"n": 1}, "at": at, "first": 17, "last": 17}
    served.daemon.explained = explanation(state="paused", replays=1)
    (lane,) = served.daemon.explained["events"][0]["plugins"]
    lane["pause"] = pause_row(reason="by command")
    lane["outcomes"] = [
        outcome,
        {**outcome, "word": "passed", "data": {"reason": "stale", "count": 3}, "last": 19},
        {**outcome, "word": "set back", "data": None, "last": 1_016},
        {**outcome, "word": "tried again", "data": None},
    ]
    assert ask("explain", "17").stdout.splitlines()[3:9] == [
        "plugin echo: waiting again, since its conversation is paused",
        "  the conversation is paused until it is resumed: by command",
        f'  {at} outcome: greeted {{"n": 1}}',
        f'  {at} outcome: passed {{"reason": "stale", "count": 3}} (positions 17 to 19)',
        f"  {at} somebody wanted it to be handled again (positions 17 to 1016)",
        f"  {at} somebody wanted its dead letter to be delivered again",
    ]


def test_an_event_that_is_not_found_fails_with_the_remedy(ask: Callable[..., Result], served: Any) -> None:
    served.daemon.error = ControlError(404, "UNKNOWN_EVENT", "no event 'x'", "name its id")
    result = ask("explain", "x", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "agentd: no event 'x'; name its id\n")


# Tables and ages


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_599, "59 min"),
        (3_660, "1 h 1 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_an_age_is_told_in_two_units_at_most(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_a_moment_without_a_zone_is_universal_time() -> None:
    now = datetime(2026, 1, 2, 4, tzinfo=UTC)
    assert since("2026-01-02T03:00:00", now) == since("2026-01-02T04:00:00+01:00", now) == "1 h 0 min"
    assert since(None, now) == "-"


CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5), st.integers(40, 90))
def test_a_table_fits_and_keeps_what_matters_most(rows: list[tuple[str, str, str]], width: int) -> None:
    columns = [
        Column("FIRST", lambda row: row["cells"][0]),
        Column("SECOND", lambda row: row["cells"][1], 2, right=True),
        Column("THIRD", lambda row: row["cells"][2], 1),
    ]
    lines = table(columns, [{"cells": cells} for cells in rows], width)
    assert len(lines) == len(rows) + 1
    heading = lines[0]
    assert "FIRST" in heading
    assert "SECOND" not in heading or "THIRD" in heading
    for line in lines[1:]:
        assert columns_of(line) <= width
        assert len(line.splitlines()) <= 1


def test_several_columns_that_must_stay_are_cut_until_they_fit() -> None:
    columns = [Column(title, lambda row: "x" * 50) for title in ("FIRST", "SECOND", "THIRD")]
    assert columns_of(table(columns, [{}], 60)[1]) == 60
    assert columns_of(table(columns, [{}], 20)[1]) == 3 * 8 + 4, "as narrow as a cell can be"


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert columns_of("日本") == 4
    assert columns_of("e\u0301") == 1
