"""The hub's file: who may read it, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.hub.database import Database, StoreUnusable
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

FILES = ("hub.db", "hub.db-shm", "hub.db-wal")


@pytest.fixture(autouse=True)
def open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()}


async def test_mail_and_keys_are_for_the_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    async with Hub(HubSettings(database=str(tmp_path / "hub.db"))) as hub:
        hub.create_agent("alice")
        assert modes(tmp_path) == dict.fromkeys(FILES, 0o600)


def test_a_file_that_was_open_to_others_is_closed_to_them_with_all_that_lies_beside_it(tmp_path: Path) -> None:
    left = Database(str(tmp_path / "hub.db"))
    for name in FILES:
        (tmp_path / name).chmod(0o644)
    opened = Database(str(tmp_path / "hub.db"))
    assert modes(tmp_path) == dict.fromkeys(FILES, 0o600)
    opened.close()
    left.close()


@pytest.mark.parametrize(("name", "why"), [("folder", "Is a directory"), ("text", "file is not a database")])
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(StoreUnusable) as refused:
        Database(str(tmp_path / name))
    assert str(refused.value) == f"{tmp_path / name} cannot be the hub's store ({why}); name another file"
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o666, "whatever it is, it is none of ours"
