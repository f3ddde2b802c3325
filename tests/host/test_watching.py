"""Files that change are noticed once, when they have come to rest."""

from pathlib import Path

from agentd.host.watching import Watch, snapshot

OLD, NEW, NEWER = ({"/p.py": (n, 10)} for n in (1, 2, 3))


def test_a_change_is_told_when_the_files_have_rested() -> None:
    watch = Watch(0.3)
    tried = {"p": OLD}
    assert watch.settled({"p": OLD}, tried, 0.0) == []
    assert watch.settled({"p": NEW}, tried, 1.0) == []
    assert watch.settled({"p": NEWER}, tried, 1.2) == []
    assert watch.settled({"p": NEWER}, tried, 1.4) == [], "it was written to 0.2 s ago"
    assert watch.settled({"p": NEWER}, tried, 1.5) == ["p"]
    tried["p"] = NEWER
    assert watch.settled({"p": NEWER}, tried, 9.0) == []


def test_a_file_that_came_back_as_it_was_is_no_change_and_one_that_went_is() -> None:
    watch = Watch(0.3)
    assert watch.settled({"p": NEW, "q": {}}, {"p": OLD, "q": OLD}, 0.0) == []
    assert watch.settled({"p": OLD, "q": {}}, {"p": OLD, "q": OLD}, 1.0) == ["q"]
    assert watch.settled({"p": OLD}, {}, 9.0) == [], "nobody has loaded it"


def test_a_snapshot_is_of_the_file_or_of_all_modules_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "packed" / "deep").mkdir(parents=True)
    for name in ("p.py", "packed/__init__.py", "packed/deep/m.py", "packed/notes.txt"):
        (tmp_path / name).write_text("#")
    assert list(snapshot("./p.py", tmp_path)) == [str(tmp_path / "p.py")]
    modules = [str(tmp_path / "packed" / name) for name in ("__init__.py", "deep/m.py")]
    assert list(snapshot("./packed", tmp_path)) == modules
    assert snapshot("./gone.py", tmp_path) == snapshot("echo", tmp_path) == {}
