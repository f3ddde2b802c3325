"""What a program gets, what becomes of its lines and its end, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agentd_exec import plugin
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from agentd.testing import ConfigError, Harness, PluginLoadError

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., str]:
    """Writes a program; a POSIX shell runs it unless its first line says otherwise."""

    def write(text: str, name: str = "program") -> str:
        path = tmp_path / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


def example(language: str, containing: str) -> str:
    blocks = [each for each in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in each]
    assert len(blocks) == 1
    return str(blocks[0])


def running(*words: str, **settings: Any) -> Harness:
    given = {name: settings.pop(name) for name in ("timeout_s", "attempts") if name in settings}
    return Harness(plugin, {"command": list(words), **settings}, **given)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children() -> set[str]:
    """Of this process, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(stat.parent.name)
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# the README's examples


async def test_the_readmes_shell_agent_answers(script: Callable[..., str]) -> None:
    async with running(script(example("sh", "ping"))) as h:
        await h.message("ping")
        await h.message("what?")
        assert h.texts == ["pong", "say ping"]
        await h.message("busy")
        assert "RetryLater" in h.failed[0].error


async def test_the_readmes_text_agent_answers(script: Callable[..., str]) -> None:
    async with running(script(example("sh", "You said")), format="text") as h:
        await h.message('$(rm -rf /) "quoted"\n`two lines`')
        assert h.texts == ['You said: $(rm -rf /) "quoted"\n`two lines`']


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_the_readmes_resident_node_agent_answers(script: Callable[..., str]) -> None:
    async with running(script(example("js", "readline")), resident=True) as h:
        await h.message("one")
        await h.message("two", sender="@ann")
        assert h.texts == ["turn 1: ONE", "turn 2: TWO"]


def test_the_readme_tells_every_setting() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert plugin.config is not None
    assert told == set(plugin.config.__struct_fields__)


# what a program gets


async def test_a_message_comes_as_one_line_and_never_on_the_command_line(script: Callable[..., str]) -> None:
    program = script('cat > seen; tr "\\0" " " < /proc/$$/cmdline > words')
    folder = Path(program).parent
    async with running(program, "fixed", folder=str(folder)) as h:
        await h.message("--help; $(id)\nsecond line", sender="@bob", metadata={"m": 1})
        assert h.pending == 0
    line = (folder / "seen").read_text()
    assert line.count("\n") == 1
    event = json.loads(line)
    assert (event["type"], event["text"], event["sender"]) == ("Message", "--help; $(id)\nsecond line", "bob")
    assert (event["identity"], event["metadata"], event["attempt"]) == ("me", {"m": 1}, 1)
    assert event["deadline"] > time.time()
    assert (folder / "words").read_text() == f"/bin/sh {program} fixed "


async def test_the_environment_holds_what_was_configured_and_the_turn(
    script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_SECRET", "not for everybody")
    monkeypatch.setenv("WANTED", "yes")
    program = script("env > seen")
    folder = Path(program).parent
    async with running(program, folder=str(folder), inherit=["PATH", "WANTED"], env={"EXTRA": "1"}) as h:
        await h.message("hello", sender="@bob")
    seen = dict(line.split("=", 1) for line in (folder / "seen").read_text().splitlines())
    told = {name: value for name, value in seen.items() if name not in ("PATH", "PWD", "OLDPWD", "SHLVL", "_")}
    assert 50 <= int(told.pop("AGENTD_DEADLINE_S")) <= 60
    assert told == {
        "WANTED": "yes",
        "EXTRA": "1",
        "AGENTD_ATTEMPT": "1",
        "AGENTD_CONVERSATION": "conv_bob",
        "AGENTD_EVENT_ID": "msg_1",
        "AGENTD_IDENTITY": "me",
        "AGENTD_SENDER": "bob",
    }


async def test_a_message_larger_than_a_pipe_arrives_while_the_answer_leaves(script: Callable[..., str]) -> None:
    async with running("cat", format="text") as h:
        words = "x" * 400_000
        await h.message(words)
        assert h.texts == [words]


@limits(max_examples=30, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
async def test_any_text_goes_through_a_program_unharmed(text: str) -> None:
    async with running("cat", format="text") as h:
        await h.message(text)
        assert h.texts == ([text.strip()] if text.strip() else [])
        assert h.pending == 0


async def test_a_program_gets_no_descriptor_of_the_daemons(script: Callable[..., str], tmp_path: Path) -> None:
    program = script("cat > /dev/null; for fd in /proc/$$/fd/*; do readlink $fd || :; done")
    with open(tmp_path / "of the daemon", "w") as held:
        os.set_inheritable(held.fileno(), True)
        async with running(program, format="text") as h:
            await h.message("hello")
            [text] = h.texts
    others = [line for line in str(text).splitlines() if not line.startswith("pipe:") and line != program]
    assert others == []
    assert text.count("pipe:") == 3


async def test_only_what_is_meant_for_the_identity_starts_a_program(script: Callable[..., str]) -> None:
    program = script('cat > /dev/null; echo \'{"reply": "here"}\'')
    async with running(program) as h:
        await h.message("among you", direct=False)
        await h.message("bob joined", kind="system")
        await h.message("mine", own=True)
        assert h.texts == []
        await h.message("@me", direct=False, mentioned=True)
        assert h.texts == ["here"]
    async with running(program, messages="all") as h:
        await h.message("among you", direct=False)
        assert h.texts == ["here"]


# what becomes of its lines


async def test_lines_say_what_to_do(script: Callable[..., str]) -> None:
    program = script(
        """echo '{"reply": {"text": "a", "data": {"n": 1}, "metadata": {"k": "v"}}}'
        echo
        echo '{"send": {"to": "@ann", "text": "b"}}'
        printf '{"reply": "without an end"}'"""
    )
    async with running(program) as h:
        await h.message("hello", sender="@bob")
        assert [(send.target, send.content.text) for send in h.sent] == [
            ("@bob", "a"),
            ("@ann", "b"),
            ("@bob", "without an end"),
        ]
        assert h.sent[0].content.data == {"n": 1}
        assert h.sent[0].content.metadata["k"] == "v"


async def test_a_program_that_asks_for_time_gets_it_and_says_nothing(script: Callable[..., str]) -> None:
    program = script("""echo '{"reply": "lost"}'; echo '{"retry_after_s": 60}'; exit 3""")
    async with running(program) as h:
        await h.message("hello")
        assert h.failed[0].error == "RetryLater: the program asked for it"
        assert h.failed[0].not_before == h.clock.unix() + 60
        assert h.sent == []


async def test_a_program_that_gives_up_makes_a_dead_letter(script: Callable[..., str]) -> None:
    async with running(script("""echo '{"give_up": "spam"}'""")) as h:
        await h.message("hello")
        assert [dead.error for dead in h.dead] == ["GiveUp: spam"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "none of ours"),
        ('{"repyl": "x"}', "unknown field `repyl`"),
        ("{}", "a line has one of"),
        ('{"reply": "x", "done": true}', "a line has one of"),
        ('{"retry_after_s": -1}', "retry_after_s"),
        ('{"reply": {}}', "nothing to say"),
    ],
)
async def test_a_line_that_is_none_of_ours_is_a_failure_that_says_so(
    script: Callable[..., str], line: str, reason: str
) -> None:
    async with running(script(f"""echo '{{"reply": "lost"}}'; echo '{line}'""")) as h:
        await h.message("hello")
        assert reason in h.failed[0].error
        assert h.sent == []


async def test_output_is_bounded(script: Callable[..., str]) -> None:
    async with running(script("""while :; do echo '{"reply": "more"}'; done"""), output_max_bytes=10_000) as h:
        await h.message("hello")
        assert "more than 10000 bytes (output_max_bytes)" in h.failed[0].error
        assert h.sent == []


# how it ends


async def test_exit_status_75_means_later(script: Callable[..., str]) -> None:
    async with running(script("echo not yet >&2; exit 75"), retry_s=45) as h:
        await h.message("hello")
        assert h.failed[0].error == "RetryLater: the program exited with 75; the last of its stderr: not yet"
        assert h.failed[0].not_before == h.clock.unix() + 45


async def test_any_other_end_is_a_failure_told_with_the_last_of_its_stderr(script: Callable[..., str]) -> None:
    async with running(script("""echo '{"reply": "lost"}'; echo one >&2; echo two >&2; exit 3"""), attempts=1) as h:
        await h.message("hello")
        assert h.dead[0].error == "ProgramFailed: exit status 3; the last of its stderr: two"
        assert h.sent == []
    async with running(script("kill -9 $$"), attempts=1) as h:
        await h.message("hello")
        assert h.dead[0].error == "ProgramFailed: killed by signal 9"


async def test_a_program_that_reads_nothing_may_answer_all_the_same(script: Callable[..., str]) -> None:
    async with running(script("""exec <&-; echo '{"reply": "done"}'""")) as h:
        await h.message("x" * 400_000)
        assert h.texts == ["done"]


async def test_stderr_is_logged_up_to_its_bound(script: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentd.plugins.exec")
    program = script("echo first >&2; n=0; while [ $n -lt 200 ]; do echo 0123456789 >&2; n=$((n+1)); done")
    async with running(program, stderr_max_bytes=100) as h:
        await h.message("hello")
        assert h.pending == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "agentd.plugins.exec"]
    assert lines[0] == "first"
    assert lines[-1] == "... more than 100 bytes in one turn; the rest is not shown"
    assert len(lines) < 15


async def test_the_deadline_kills_the_whole_group(script: Callable[..., str]) -> None:
    program = script("sleep 600 & echo $! > pids; echo $$ >> pids; wait")
    folder = Path(program).parent
    async with running(program, folder=str(folder), timeout_s=0.3) as h:
        await h.message("hello")
        assert "DeadlinePassed" in h.failed[0].error
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert len(pids) == 2
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def test_what_a_program_leaves_behind_neither_delays_its_turn_nor_outlives_it(script: Callable[..., str]) -> None:
    program = script("""sleep 600 & echo $! > pid; echo '{"reply": "done"}'""")
    folder = Path(program).parent
    async with running(program, folder=str(folder)) as h:
        await h.message("hello")
        assert h.texts == ["done"]
    await until(lambda: not is_alive(int((folder / "pid").read_text())))


async def test_a_turn_that_is_cut_off_ends_its_program_and_runs_again(script: Callable[..., str]) -> None:
    program = script("""echo $$ >> pids; [ -e again ] || { echo > again; sleep 600; }; echo '{"reply": "done"}'""")
    folder = Path(program).parent
    async with running(program, folder=str(folder)) as h:
        await h.message("hello", settle=False)
        await until((folder / "again").exists)
        await h.crash()
        assert h.texts == ["done"]
    first, second = (int(line) for line in (folder / "pids").read_text().split())
    await until(lambda: not is_alive(first) and not is_alive(second))


async def test_a_program_that_is_gone_by_now_is_a_failure_like_any_other(script: Callable[..., str]) -> None:
    program = script("")
    async with running(program) as h:
        Path(program).unlink()
        await h.message("hello")
        assert h.failed[0].error.startswith("FileNotFoundError")


async def test_turns_leave_no_descriptors_and_no_zombies(script: Callable[..., str]) -> None:
    children_before = children()
    async with running("cat", format="text") as h:
        await h.message("warm up")
        before = set(os.listdir("/proc/self/fd"))
        for n in range(20):
            await h.message(f"{n}", sender=f"@peer{n}", settle=False)
        await h.settle()
        assert len(h.texts) == 21
        assert set(os.listdir("/proc/self/fd")) == before
    await until(lambda: children() <= children_before)


# residents

COUNTING = """n=0
while read -r event; do
    n=$((n+1))
    echo "{\\"reply\\": \\"$$ $n\\"}"
    echo '{"done": true}'
done"""


async def test_a_resident_lives_on_from_turn_to_turn(script: Callable[..., str]) -> None:
    async with running(script(COUNTING), resident=True) as h:
        for _ in range(3):
            await h.message("hello")
        pid = int(h.texts[0].split()[0])
        assert h.texts == [f"{pid} 1", f"{pid} 2", f"{pid} 3"]
        assert is_alive(pid)
    await until(lambda: not is_alive(pid))


async def test_turns_that_come_together_get_a_process_each(script: Callable[..., str]) -> None:
    async with running(script(COUNTING), resident=True) as h:
        for peer in ("@ann", "@bob"):
            await h.message("hello", sender=peer, settle=False)
        await h.settle()
        assert len({text.split()[0] for text in h.texts}) == 2
        await h.message("again")
        assert h.texts[2].endswith(" 2")


async def test_after_a_crash_a_new_resident_takes_over(script: Callable[..., str]) -> None:
    async with running(script(COUNTING), resident=True) as h:
        await h.message("hello")
        h.crash_after_handler()
        await h.message("cut off")
        assert [text.split()[1] for text in h.texts] == ["1", "1"]
        assert len({send.client_msg_id for send in h.sent}) == 2


async def test_a_resident_that_breaks_off_is_replaced(script: Callable[..., str]) -> None:
    program = script(
        """while read -r event; do
    case $event in *die*) exit 3;; *quit*) exit 0;; *later*) echo '{"retry_after_s": 5}';; esac
    echo "{\\"reply\\": \\"$$\\"}"; echo '{"done": true}'
done"""
    )
    async with running(program, resident=True, attempts=1) as h:
        await h.message("hello")
        await h.message("die")
        await h.message("hello")
        await h.message("quit")
        assert [dead.error for dead in h.dead] == [
            "ProgramFailed: exit status 3",
            'ProgramFailed: it exited before it wrote {"done": true}',
        ]
        assert len(set(h.texts)) == 2


async def test_what_a_resident_may_write_is_counted_by_the_turn(script: Callable[..., str]) -> None:
    async with running(script(COUNTING), resident=True, output_max_bytes=100) as h:
        for _ in range(10):
            await h.message("hello")
        assert [text.split()[1] for text in h.texts] == [str(n) for n in range(1, 11)]


async def test_a_resident_that_asks_for_time_stays(script: Callable[..., str]) -> None:
    program = script(
        """n=0; while read -r event; do n=$((n+1))
    [ $n = 1 ] && echo '{"retry_after_s": 5}' || echo "{\\"reply\\": \\"turn $n\\"}"
    echo '{"done": true}'
done"""
    )
    async with running(program, resident=True) as h:
        await h.message("hello")
        assert h.failed[0].not_before == h.clock.unix() + 5
        await h.advance(6)
        assert h.texts == ["turn 2"]


async def test_what_a_resident_says_out_of_turn_reaches_nobody(
    script: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    program = script(
        """while read -r event; do
    echo "{\\"reply\\": \\"$$\\"}"; echo '{"done": true}'; echo '{"reply": "for the next one"}'
    echo written > written
done"""
    )
    folder = Path(program).parent
    async with running(program, resident=True, folder=str(folder)) as h:
        await h.message("hello", sender="@ann")
        await until((folder / "written").exists)
        await h.message("hello", sender="@bob")
        assert len(set(h.texts)) == 2
        assert "for the next one" not in h.texts
    assert "wrote out of turn" in caplog.text


async def test_a_residents_deadline_kills_it_and_the_next_turn_gets_another(script: Callable[..., str]) -> None:
    program = script(
        """while read -r event; do
    case $event in *hang*) echo $$ > pid; sleep 600;; esac
    echo '{"reply": "here"}'; echo '{"done": true}'
done"""
    )
    folder = Path(program).parent
    async with running(program, resident=True, folder=str(folder), timeout_s=0.5, attempts=1) as h:
        await h.message("hang")
        assert "DeadlinePassed" in h.dead[0].error
        await until(lambda: not is_alive(int((folder / "pid").read_text())))
        await h.message("hello")
        assert h.texts == ["here"]


# settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, r"plugin\.exec\.config\.command: is missing"),
        ({"command": []}, r"plugin\.exec\.config\.command: .*length"),
        ({"command": "cat"}, r"plugin\.exec\.config\.command: .*array"),
        ({"command": ["cat"], "formt": "text"}, r"plugin\.exec\.config\.formt: .*did you mean format"),
        ({"command": ["cat"], "format": "xml"}, r"plugin\.exec\.config\.format"),
        ({"command": ["cat"], "format": "text", "resident": True}, r"plugin\.exec\.config: resident = true needs"),
    ],
)
async def test_wrong_settings_are_told_by_their_key(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        async with Harness(plugin, settings):
            pass


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"command": ["no-such-program"]}, r"plugin\.exec\.config\.command: there is no program no-such-program"),
        ({"command": ["./missing.sh"]}, r"plugin\.exec\.config\.command: there is no program"),
        ({"command": ["cat"], "folder": "/nowhere"}, r"plugin\.exec\.config\.folder: there is no folder"),
        ({"command": ["cat"], "env": {"PATH": "/nowhere"}}, r"plugin\.exec\.config\.command: there is no program cat"),
    ],
)
async def test_a_program_that_is_not_there_is_told_before_the_first_event(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PluginLoadError, match=problem):
        async with Harness(plugin, settings):
            pass


async def test_it_works_on_the_loop_that_the_daemon_runs_on(script: Callable[..., str]) -> None:
    program = f"""
import asyncio, uvloop
from agentd_exec import plugin
from agentd.testing import ConfigError, Harness, PluginLoadError
async def main():
    for resident in (False, True):
        async with Harness(plugin, {{"command": [{script(COUNTING)!r}], "resident": resident}}) as h:
            await h.message("a"); await h.message("b")
            print([text.split()[1] for text in h.texts])
    async with Harness(plugin, {{"command": ["cat"], "format": "text"}}) as h:
        await h.message("x" * 400_000)
        print(len(h.texts[0]))
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(child.communicate(), 30)
    assert output.decode().split("\n") == ["['1', '1']", "['1', '2']", "400000", ""]
