"""What log writes, and what happens to its file meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentd_log import plugin

from agentd.plugin import Gap, StreamReset
from agentd.testing import Harness, PluginLoadError


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow beyond this, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_every_message_becomes_a_line_whole(file: Path) -> None:
    async with Harness(plugin, {"file": str(file)}) as h:
        await h.message("one\ntwo", sender="@bob", data={"n": 1}, metadata={"m": True})
        await h.message("in a group", conversation="grp_a", direct=False)
        assert h.pending == 0
    first, second = lines(file)
    assert first["type"] == "Message"
    assert (first["identity"], first["conversation"], first["seq"], first["sender"]) == ("me", "conv_bob", 1, "bob")
    assert (first["text"], first["data"], first["metadata"]) == ("one\ntwo", {"n": 1}, {"m": True})
    assert "payload" not in first
    assert (second["conversation"], second["direct"]) == ("grp_a", False)


async def test_own_words_are_written_when_asked_for(file: Path) -> None:
    async with Harness(plugin, {"file": str(file)}) as h:
        await h.message("mine", own=True)
    assert lines(file) == []
    async with Harness(plugin, {"file": str(file), "own": True}) as h:
        await h.message("mine", own=True)
    assert [(line["text"], line["own"]) for line in lines(file)] == [("mine", True)]


async def test_the_bytes_of_the_platform_are_written_when_asked_for(file: Path) -> None:
    async with Harness(plugin, {"file": str(file), "payload": True}) as h:
        await h.message("hello")
    assert lines(file)[0]["payload"] == ""


async def test_gaps_and_resets_are_written_too(file: Path) -> None:
    async with Harness(plugin, {"file": str(file)}) as h:
        await h.signal(Gap(identity="me", conversation="c", epoch=1, start=3, stop=5, absent=2, reason="gone"))
        await h.signal(StreamReset(identity="me", conversation="c", epoch=2, top=9, adopted=False))
    assert [(line["type"], line["epoch"]) for line in lines(file)] == [("Gap", 1), ("StreamReset", 2)]
    assert lines(file)[0]["reason"] == "gone"


async def test_only_the_owner_may_read_a_file_that_it_makes(file: Path) -> None:
    before = os.umask(0)
    try:
        async with Harness(plugin, {"file": str(file)}):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def test_a_renamed_file_is_followed_by_a_new_one(file: Path) -> None:
    old = file.with_suffix(".1")
    async with Harness(plugin, {"file": str(file)}) as h:
        await h.message("before")
        file.rename(old)
        await h.message("after")
    assert [line["text"] for line in lines(old)] == ["before"]
    assert [line["text"] for line in lines(file)] == ["after"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_what_stood_in_the_file_stays(file: Path) -> None:
    file.write_text('{"text":"earlier"}\n')
    async with Harness(plugin, {"file": str(file), "fsync": True}) as h:
        await h.message("now")
    assert [line["text"] for line in lines(file)] == ["earlier", "now"]


async def test_with_fsync_a_new_file_is_written_as_well(file: Path) -> None:
    async with Harness(plugin, {"file": str(file), "fsync": True}) as h:
        await h.message("now")
    assert [line["text"] for line in lines(file)] == ["now"]


async def test_a_line_that_a_full_disk_tore_is_ended_and_written_again(file: Path) -> None:
    async with Harness(plugin, {"file": str(file)}) as h:
        await h.message("first")
        with files_limited_to(file.stat().st_size + 10):
            await h.message("torn")
        assert [attempt.error.split(":")[0] for attempt in h.failed] == ["OSError"]
        await h.advance(10)
        assert h.pending == 0
    first, torn, again = file.read_bytes().splitlines()
    assert json.loads(first)["text"] == "first"
    assert len(torn) == 10
    assert json.loads(again)["text"] == "torn"


async def test_lines_of_many_conversations_never_mix(file: Path) -> None:
    words = "x" * 10_000
    async with Harness(plugin, {"file": str(file)}) as h:
        for n in range(40):
            await h.message(f"{n} {words}", sender=f"@peer{n}", settle=False)
        await h.settle()
        await asyncio.sleep(0)
    assert sorted(int(line["text"].split()[0]) for line in lines(file)) == list(range(40))


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere/audit.jsonl", "No such file"), ("", "Is a directory"), ("pipe", "no regular file")]
)
async def test_a_file_that_cannot_be_written_is_told_before_the_first_event(
    tmp_path: Path, name: str, reason: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PluginLoadError, match=rf"plugin\.log\.config\.file: .* cannot be written \(.*{reason}"):
        async with Harness(plugin, {"file": str(tmp_path / name)}):
            pass
