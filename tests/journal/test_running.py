"""What was being handled when the process died is known to the next one, at the price of a store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.journal import running
from agentd.journal.running import Running, Unfinished, open_running

_DIES = """
import os, sys
from pathlib import Path
from agentd.journal.running import open_running
marks, _ = open_running(Path(sys.argv[1]), ["a", "b"], 4)
marks.ended(marks.began(marks.tag("a"), 7, 7))
marks.began(marks.tag("b"), 2**46, 2**46)
marks.began(marks.tag("a"), 9, 9)
os._exit(3)
"""


def test_a_process_that_dies_leaves_what_it_was_at(tmp_path: Path) -> None:
    path = tmp_path / "running"
    died = subprocess.run([sys.executable, "-c", _DIES, str(path)], check=False)
    assert died.returncode == 3
    assert path.stat().st_mode & 0o777 == 0o600
    marks, unfinished = open_running(path, ["b", "a"], 4)
    assert sorted(unfinished) == [Unfinished("a", 9, 9), Unfinished("b", 2**46, 2**46)]
    assert marks.unfinished() == []
    assert open_running(path, ["a"], 4)[1] == []


def test_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    marks, _ = open_running(tmp_path / "running", ["a"], 1)
    marks.began(0, 5, 5)
    marks.close()
    assert open_running(tmp_path / "running", ["a"], 1)[1] == []


def test_what_ended_with_the_whole_machine_is_no_fault_of_a_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks, _ = open_running(tmp_path / "running", ["a"], 1)
    marks.began(0, 5, 5)
    monkeypatch.setattr(running, "_boot", lambda: "another")
    assert open_running(tmp_path / "running", ["a"], 1)[1] == []


@pytest.mark.parametrize("content", [b"", b"half a head", b"{}" + bytes(100_000)])
def test_a_file_that_makes_no_sense_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "running").write_bytes(content)
    marks, unfinished = open_running(tmp_path / "running", ["a"], 1)
    assert unfinished == []
    marks.began(0, 5, 5)
    assert open_running(tmp_path / "running", ["a"], 1)[1] == [Unfinished("a", 5, 5)]


def test_without_a_place_for_the_file_the_marks_live_in_memory(tmp_path: Path) -> None:
    marks, _ = open_running(tmp_path / "nowhere" / "running", ["a"], 1)
    marks.began(0, 5, 5)
    assert marks.unfinished() == [Unfinished("a", 5, 5)]
    assert not os.listdir(tmp_path)


def test_as_many_calls_as_there_are_slots_are_marked_at_once() -> None:
    marks = Running(["a"], 3)
    slots = [marks.began(0, position, position) for position in (1, 2, 3)]
    marks.ended(slots[1])
    marks.began(0, 4, 4)
    assert sorted(each.position for each in marks.unfinished()) == [1, 3, 4]


def test_a_plugin_that_came_later_is_known_by_name_and_takes_the_tag_of_one_that_left(tmp_path: Path) -> None:
    path = tmp_path / "running"
    marks, _ = open_running(path, ["a", "b"], 3)
    marks.untag("a")
    assert [marks.tag("later"), marks.tag("b"), marks.tag("last"), marks.tag("later")] == [0, 1, 2, 0]
    marks.began(marks.tag("later"), 7, 7)
    marks.began(marks.tag("last"), 9, 9)
    assert sorted(open_running(path, ["a"], 1)[1]) == [Unfinished("last", 9, 9), Unfinished("later", 7, 7)]
