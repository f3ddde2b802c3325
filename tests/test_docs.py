"""What docs/ shows is what happens: every block is run or read, every link leads somewhere, every name is one."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click
import msgspec
import pytest
from click.testing import CliRunner

from agentd.cli import cli
from agentd.config import load, settings
from agentd.core.health import CODES, STATES
from agentd.host.discovery import GROUP
from agentd.hub.control import ROUTES
from agentd.hub.faults import FaultPlan
from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings
from docs.generate.everything import PAGES
from tests.test_help import found

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
KEY = "ac_live_0123456789abcdef0123456789"


class Block(NamedTuple):
    """A block of code. name: the file that its first line says it is, or ""."""

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        first = re.match(r"# ([\w.-]+\.(?:py|toml))\n", self.text)
        return first[1] if first else ""


def pages() -> dict[str, str]:
    return {str(file.relative_to(DOCS)): file.read_text() for file in sorted(DOCS.rglob("*.md"))}


def blocks() -> Iterator[Block]:
    for page, text in pages().items():
        for language, code in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
            yield Block(page, language, code)


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


def clean_environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "AGENTD"))}
    return {**kept, **more}


# what is made from the code


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_what_is_made_from_the_code_is_up_to_date(file: Path) -> None:
    assert file.read_text() == PAGES[file](), "run: make docs"


def test_every_setting_has_its_reason_in_the_reference() -> None:
    text = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \| (.+) \|$", text, re.MULTILINE)
    keys = [field.name for kind in tables() for field in msgspec.structs.fields(kind) if not is_table(field.type)]
    assert sorted(name for name, _ in rows) == sorted(keys)
    assert [name for name, why in rows if why == "See above."] == ["env", "file", "credential", "command"]


def is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not settings.KeySource


def tables() -> list[type[msgspec.Struct]]:
    inner = [field.type for field in msgspec.structs.fields(settings.Agentd) if is_table(field.type)]
    return [
        settings.Agentd,
        *inner,
        settings.Identity,
        settings.CatchUp,
        settings.LoopGuard,
        settings.PluginSettings,
        settings.KeySource,
    ]


def test_the_man_page_is_one_and_comes_with_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {"docs/agentd.8": "share/man/man8/agentd.8"}
    lines = (DOCS / "agentd.8").read_text().splitlines()
    macros = {line.split()[0] for line in lines if line.startswith(".")}
    assert macros <= {'.\\"', ".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR", ".nh", ".ad"}
    assert not any(line.startswith("'") for line in lines)
    sections = [line.removeprefix(".SS agentd ").replace("\\-", "-") for line in lines if line.startswith(".SS")]
    for name, command in cli.commands.items():
        names = [f"{name} {each}" for each in command.commands] if isinstance(command, click.Group) else [name]
        for each in names:
            assert any(f"{section} ".startswith(f"{each} ") for section in sections), each


# blocks


def test_every_block_is_of_a_kind_that_some_test_sees_to() -> None:
    assert {block.language for block in blocks()} <= {"python", "toml", "sh"}
    for block in blocks():
        assert block.language == "sh" or block.name, f"no test knows this block; say which file it is:\n{block.text}"


OPTIONS = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
"""As pytest.ini says it that `agentd new plugin` writes."""


@pytest.mark.parametrize("page", sorted({block.page for block in of("python")}))
def test_the_tests_that_a_page_shows_pass_and_try_every_module_that_it_shows(page: str, tmp_path: Path) -> None:
    shown = {block.name: block.text for block in of("python") if block.page == page}
    if page == "control-api.md":
        assert list(shown) == ["ask.py"]  # below
        return
    for name, text in shown.items():
        (tmp_path / name).write_text(text)
    tests = {name for name in shown if name.startswith("test_")}
    for name in shown.keys() - tests:
        tried = f"from {name.removesuffix('.py')} import"
        assert any(tried in shown[test] for test in tests), f"no test that is shown tries {name}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *OPTIONS, "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_that_asks_the_control_socket_gets_its_answer(served: Any, tmp_path: Path) -> None:
    [block] = [block for block in of("python") if block.name == "ask.py"]
    (tmp_path / block.name).write_text(block.text)
    done = subprocess.run(
        [sys.executable, tmp_path / block.name, served.path], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "alice live\nbob parked\n"


def test_every_configuration_that_is_shown_is_taken_as_it_stands(tmp_path: Path) -> None:
    shown = [block for block in of("toml") if block.name != "pyproject.toml"]
    assert shown
    for index, block in enumerate(shown):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name in re.findall(r'(?:file|credential) = "([^"]+)"', block.text):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("5a" * 32 if name == "journal" else f"{KEY}-{name}")
            (folder / name).chmod(0o600)
        for name in re.findall(r'use = "(\./[^"]+)"', block.text):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        (folder / "agentd.toml").write_text(block.text)
        load(folder / "agentd.toml", {"CREDENTIALS_DIRECTORY": str(folder), "PATH": os.environ["PATH"]})


def test_a_plugin_is_packaged_under_the_group_that_is_looked_into() -> None:
    [block] = [block for block in of("toml") if block.name == "pyproject.toml"]
    assert list(tomllib.loads(block.text)["project"]["entry-points"]) == [GROUP]


# commands

ELSEWHERE = {
    "python3 -m venv": "the Makefile does the same, and tests/test_makefile.py runs that",
    ".venv/bin/pip install": "the same",
    ". .venv/bin/activate": "of the venv module",
    "python -m pytest": "what test_the_tests_that_a_page_shows_pass runs",
    "install -m": "coreutils",
    "sudo install -m": "coreutils",
    "sudo python3 -m venv": "as above, for the machine",
    "sudo /opt/agentd/bin/pip install": "as above",
    "systemctl": "tests/service/test_user_manager.py",
    "sudo systemctl": "tests/service/test_user_manager.py",
    "systemd-analyze": "tests/test_service.py",
    "journalctl": "tests/service/test_user_manager.py",
    "openssl rand -base64 32 | sudo systemd-creds": "such keys are in tests/journal/test_sealing.py",
    "pip install 'agentd[otel]'": "pyproject.toml names the extra, and every test of traces needs it",
    "docker run": "somebody else's collector; tests/whole/test_traces.py has one of its own",
    "curl": "tests/control/test_http.py and test_the_hubs_control_takes_what_is_shown ask the same",
}
"""How lines begin that are not the command itself, and who sees to them."""


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, line) of every shell block, continued lines joined."""
    for block in of("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip():
                yield block.page, line.split("  #")[0].strip()


def inline_commands() -> Iterator[tuple[str, str]]:
    for page, text in pages().items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        yield from (
            (page, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", prose) if code.startswith("agentd ")
        )


def words_of(line: str) -> list[str] | None:
    """The words of a line that runs the command, or None."""
    words = shlex.split(line.split(" | ")[0].split(" > ")[0])
    words = words[1:] if words[0] == "sudo" else words
    return words[1:] if Path(words[0]).name == "agentd" else None


def problem_of(words: list[str]) -> str | None:
    """What the command itself says against these words. Nothing is run."""
    at: click.Command = cli
    context = click.Context(cli, info_name="agentd")
    while isinstance(at, click.Group):
        if not words or words[0].startswith("-"):
            return None if words in (["--version"], ["--help"], []) else f"no verb: {words}"
        name, *words = words
        if name not in at.commands:
            return f"there is no {name}"
        at = at.commands[name]
        context = click.Context(at, info_name=name, parent=context)
    try:
        at.make_context(at.name or "", list(words), parent=context)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        missing = isinstance(error, (click.MissingParameter, click.BadParameter)) and "does not exist" in str(error)
        return None if missing else error.format_message()
    return None


def test_every_command_line_is_one_that_the_command_takes_or_somebody_else_sees_to() -> None:
    lines = list(command_lines())
    assert len(lines) > 20
    for page, line in lines:
        ours = re.fullmatch(r'eval "\$\((agentd .+)\)"', line)
        words = words_of(ours[1] if ours else line)
        if words is not None:
            assert problem_of(words) is None, f"{page}: {line}: {problem_of(words)}"
        elif line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: {line}"
        else:
            assert any(line.startswith(begin) for begin in ELSEWHERE), f"{page}: no test knows this command: {line}"


def test_every_command_within_a_sentence_exists() -> None:
    told = list(inline_commands())
    assert len(told) > 20
    for page, command in told:
        words, at = command.split()[1:], found(())
        while words and isinstance(at, click.Group) and words[0] in at.commands:
            at = at.commands[words.pop(0)]
        verb = re.fullmatch("[a-z][a-z-]+", words[0]) if words else None
        assert not (isinstance(at, click.Group) and verb), f"{page}: {command}"
        options = {name for each in at.params for name in each.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, f"{page}: {command}"


async def test_the_first_session_runs_as_it_is_shown(tmp_path: Path) -> None:
    """Every line of the chapter without an account, typed into a shell beside the daemon that it starts."""
    text = (DOCS / "getting-started.md").read_text()
    chapter = text[text.index("## Try it") : text.index("## Give it")]
    start, *rest = re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "agentd").symlink_to(Path(sys.executable).with_name("agentd"))
    environ = clean_environ(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    daemon = await asyncio.create_subprocess_exec(
        *start.split(), cwd=tmp_path, env=environ, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            while not (tmp_path / "state" / "control.sock").exists():
                await asyncio.sleep(0.02)
        for block in rest:
            done = await asyncio.to_thread(
                subprocess.run,
                ["/bin/sh", "-e"],
                input=block,
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            if "send" in block:
                assert "echo: hello" in done.stdout
                assert json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]["identities"]
    finally:
        daemon.terminate()
        await daemon.communicate()
    assert daemon.returncode == 0
    assert (tmp_path / "order-desk" / "test_order_desk.py").exists()
    shutil.rmtree(tmp_path / "state")


def test_the_control_socket_is_told_in_the_words_of_who_calls() -> None:
    page = (DOCS / "control-api.md").read_text()
    assert "Unix seconds" not in page, "a moment is given as text"
    assert ";  " not in page, "what is not given is nothing"
    assert "ended. then nothing" not in page, "half a sentence"


# the development server


def hub_page() -> str:
    return (DOCS / "hub.md").read_text()


def test_every_fault_and_every_route_of_the_hub_is_told() -> None:
    names = set(FaultPlan.__struct_fields__) - {"seed"}
    assert {name for name in re.findall(r"`(\w+)`", hub_page()) if name.rsplit("_")[0] in FAULT_KINDS} == names
    told = re.findall(r"`(GET|POST) (/hub/v1/[\w/]+)", hub_page())
    assert sorted(told) == sorted((method, path) for method, path, _ in ROUTES)


FAULT_KINDS = {"push", "upgrade", "accept", "rest", "delay", "retry"}


async def test_the_hubs_control_takes_what_is_shown() -> None:
    shown = re.findall(r"`POST (/hub/v1/\w+)` \| `(\{.+?\})`(?= \||:|;)", hub_page())
    assert len(shown) == len([each for each in ROUTES if each[0] == "POST"])
    settings = HubSettings(development=True)
    async with Hub(settings) as hub, aiohttp.ClientSession(hub.url) as programs:
        for handle in ("alice", "bob"):
            hub.create_agent(handle)
        conversation = hub.post("bob", "@alice", "hello")[0].conversation
        for path, body in sorted(shown, key=lambda each: each[0].endswith("/restart")):  # after which it is away
            body = body.replace("conv_1", conversation)
            async with programs.post(path, json=json.loads(body)) as answer:
                assert answer.status in (200, 201), (path, await answer.text())


async def test_a_daemon_serves_an_account_of_the_hub_as_shown(tmp_path: Path) -> None:
    """The page's first chapter, on a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start, run_and_send, *_ = re.findall(r"```sh\n(.*?)```", hub_page(), re.DOTALL)
    run, send = run_and_send.splitlines()
    [config] = [block.text for block in of("toml") if block.page == "hub.md"]
    (tmp_path / "agentd.toml").write_text(config.replace("8787", str(port)))
    environ = clean_environ(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    async with contextlib.AsyncExitStack() as stack:
        for words in (f"{start.strip()} --port {port}", run):
            process = await asyncio.create_subprocess_exec(
                *words.split(), cwd=tmp_path, env=environ, stdout=asyncio.subprocess.PIPE
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            if words is not run:
                assert process.stdout is not None
                assert await process.stdout.readline() == f"hub at http://127.0.0.1:{port}\n".encode()
        async with asyncio.timeout(30):
            while not (tmp_path / "state" / "control.sock").exists():
                await asyncio.sleep(0.02)
        answered = await asyncio.create_subprocess_exec(
            *shlex.split(send), cwd=tmp_path, env=environ, stdout=asyncio.subprocess.PIPE
        )
        assert (await answered.communicate())[0] == b"alice: hello\n"


# names and links


def slug(heading: str) -> str:
    """As Markdown renderers make the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", ["../README.md", "../ARCHITECTURE.md", *pages()])
def test_every_link_leads_somewhere(page: str) -> None:
    file = (DOCS / page).resolve()
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        assert not target.startswith("http"), f"{target}: a page that is read without network leads nowhere else"
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_map_of_the_code_has_every_part_and_nothing_else() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = re.findall(r"```\n(.*?)```", text, re.DOTALL)[0]
    parts = {
        each.name + ("/" if each.is_dir() else "")
        for each in (ROOT / "agentd").iterdir()
        if each.suffix == ".py" or (each.is_dir() and any(each.glob("*.py")))
    }
    named = set(re.findall(r"^  ((?:[a-z_]+(?:\.py|/) ?)+)", drawn, re.MULTILINE))
    assert {name for line in named for name in line.split()} | {"errors.py"} == parts - {"__init__.py", "__main__.py"}
    for module in (ROOT / "agentd" / "core").glob("[a-z]*.py"):
        assert re.search(rf"\b{module.stem}\b", drawn), module


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\(([^)#\s]+)\)", (DOCS / "index.md").read_text()))
    assert set(pages()) - {"index.md"} <= listed


def test_every_proof_that_is_named_exists() -> None:
    named = [
        (page, *each) for page, text in pages().items() for each in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text)
    ]
    assert len(named) > 40
    for page, file, test in named:
        source = (ROOT / file).read_text() if (ROOT / file).exists() else ""
        assert source, f"{page}: {file}"
        assert not test or re.search(rf"def {test}\(", source), f"{page}: {file}::{test}"


def test_each_promise_of_the_readme_has_its_proof() -> None:
    readme = (ROOT / "README.md").read_text()
    promised = re.findall(
        r"^\| ([^|`]+) \| [^|]+ \|$", readme[readme.index("## What it promises") :].split("\n\n##")[0], re.MULTILINE
    )
    text = (DOCS / "guarantees.md").read_text()
    chapters = dict(re.findall(r"^## (P\d+): (.+?)$", text, re.MULTILINE))
    assert list(chapters) == [f"P{number}" for number in range(1, len(promised) + 2)]
    assert list(chapters.values())[: len(promised)] == promised
    for chapter in text.split("\n## ")[1:]:
        assert "tests/" in chapter, chapter.splitlines()[0]


def test_every_state_and_every_reason_is_told_with_what_to_do() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    for word in (*STATES, *CODES):
        assert f"`{word}`" in text, word


def test_every_setting_that_is_named_is_one() -> None:
    known = {
        f"{field.name}.{each.name}"
        for field in msgspec.structs.fields(settings.Agentd)
        if is_table(field.type)
        for each in msgspec.structs.fields(field.type)
    }
    sections = "|".join(name.split(".")[0] for name in known)
    for page, text in pages().items():
        for name in re.findall(rf"`((?:{sections})\.[a-z_]+)`", text):
            assert name in known, f"{page}: {name}"


def test_every_message_that_is_quoted_as_a_symptom_is_one() -> None:
    said = "\n".join(
        node.value
        for file in (ROOT / "agentd").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"`([^`\n]*\.\.\.[^`\n]*)`", text) + re.findall(r'(?<=[| ])"([^"\n]+)"', text)
    assert len(quoted) > 12
    for message in quoted:
        for part in message.split("..."):
            assert part.strip(" ,") in said, message


def chapter(page: str, heading: str) -> str:
    text = (DOCS / page).read_text()
    return text[text.index(f"## {heading}\n") :].split("\n## ")[0]


def test_every_state_and_every_reason_is_named_where_health_is_told() -> None:
    told = set(re.findall(r"^\| `([a-z_]+)` \|", chapter("operating.md", "Is it well?"), re.MULTILINE))
    assert told == set(STATES)
    [ready] = re.findall(r"^\| `/readyz` \| (.+)$", chapter("operating.md", "Watching it"), re.MULTILINE)
    assert set(re.findall(r"`([a-z_]+)`", ready)) == set(CODES)


def test_what_helps_when_something_went_wrong_can_be_typed_as_it_stands(served: Any) -> None:
    lines = "".join(re.findall(r"```sh\n(.*?)```", chapter("operating.md", "When something went wrong"), re.DOTALL))
    typed = [shlex.split(line, comments=True)[1:] for line in lines.splitlines()]
    verbs = {"dead", "release", "tail", "explain", "replay", "outbox", "pause", "resume"}
    assert {words[0] for words in typed} == verbs
    served.happen(None)  # the tail ends
    for words in typed:
        replays = words[0] == "replay" and "--dry-run" not in words
        yes = ["--yes"] if replays or words[:2] in (["dead", "replay"], ["outbox", "drop"]) else []
        done = CliRunner().invoke(cli, [*words, *yes, "--state", str(served.path.parent)], prog_name="agentd")
        # This daemon ends a tail, and holds another conversation.
        assert done.exit_code == {"tail": 69, "release": 1}.get(words[0], 0), (words, done.output)


def test_the_conduct_that_is_shown_is_the_default(tmp_path: Path) -> None:
    [shown] = [block for block in of("toml") if "catch_up" in block.text]
    (tmp_path / "agentd.toml").write_text(shown.text)
    (tmp_path / "alice.key").write_text(KEY)
    (tmp_path / "alice.key").chmod(0o600)
    loaded = load(tmp_path / "agentd.toml", {}).identity["alice"]
    conduct = (loaded.catch_up, loaded.loop_guard, loaded.takeover_idle_s)
    assert conduct == (settings.CatchUp(), settings.LoopGuard(), settings.Conduct().takeover_idle_s)
