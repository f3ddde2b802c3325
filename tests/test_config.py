"""The configuration: what is accepted, and every problem that is told, with its place and its remedy."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import tomllib
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import logs
from agentd.config import Settings, collector_of, find_configuration, find_state, load, resolve_header, resolve_key
from agentd.config.lines import KeyLines
from agentd.config.search import state_folder
from agentd.config.spelling import expected
from agentd.errors import ConfigError

KEY = "ac_live_the-key-of-alice-0001"
OTHER_KEY = "ac_live_the-key-of-bob-000002"
ENVIRON = {"ALICE_KEY": KEY, "BOB_KEY": OTHER_KEY}
GOOD = """\
[agentd]
state = "mail"

[identity.alice]
url = "https://api.agentchat.me"
key = { env = "ALICE_KEY" }
plugins = ["greeter"]

[plugin.greeter]
use = "echo"
config = { greeting = "hi", deep = { n = 1 } }
"""


class Folder:
    """A folder with a configuration file in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "agentd.toml"

    def load(self, text: str, environ: dict[str, str] | None = None) -> Settings:
        self.file.write_text(text)
        return load(self.file, ENVIRON if environ is None else environ)

    def problems(self, text: str, environ: dict[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            self.load(text, environ)
        return [problem.removeprefix(str(self.file)) for problem in refused.value.problems]

    def problem(self, text: str, environ: dict[str, str] | None = None) -> str:
        [only] = self.problems(text, environ)
        return only

    def key_file(self, name: str, content: str, mode: int = 0o600) -> Path:
        file = self.path / name
        file.write_text(content)
        file.chmod(mode)
        return file


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def alice(*lines: str, key: str = '{ env = "ALICE_KEY" }') -> str:
    return "\n".join(["[identity.alice]", 'url = "https://api.agentchat.me"', f"key = {key}", *lines])


# What is accepted


def test_a_whole_configuration_becomes_settings(folder: Folder) -> None:
    settings = folder.load(GOOD)
    assert settings.agentd.state == str(folder.path / "mail")
    assert settings.identity["alice"].plugins == ("greeter",)
    assert settings.identity["alice"].platform == "agentchat"
    assert settings.plugin["greeter"].config == {"greeting": "hi", "deep": {"n": 1}}
    assert settings.agentd.link.ping_interval_s == 20.0
    assert not settings.embedded


def test_numbers_may_be_written_without_a_fraction(folder: Folder) -> None:
    assert folder.load("[agentd.link]\nping_interval_s = 5").agentd.link.ping_interval_s == 5.0


def test_relative_paths_start_at_the_configuration_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    folder.key_file("alice.key", KEY)
    (folder.path / "greeter.py").touch()
    settings = folder.load(
        alice('plugins = ["greeter"]', key='{ file = "alice.key" }') + '\n[plugin.greeter]\nuse = "./greeter.py"\n'
    )
    assert settings.identity["alice"].key.file == str(folder.path / "alice.key")
    assert settings.plugin["greeter"].use == str(folder.path / "greeter.py")


def test_modules_and_entry_points_are_left_as_they_are(folder: Folder) -> None:
    settings = folder.load('[plugin.a]\nuse = "package.module:plugin"\n[plugin.b]\nuse = "echo"')
    assert [settings.plugin[name].use for name in "ab"] == ["package.module:plugin", "echo"]


def test_without_any_file_the_daemon_brings_its_own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if find_configuration({}) is not None:
        pytest.skip("this machine has a system-wide configuration")
    settings = load(None, {})
    assert settings.embedded
    assert settings.agentd.state == str(tmp_path / "state")


def test_the_file_is_looked_for_in_the_usual_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, managed, named = tmp_path / "here", tmp_path / "managed", tmp_path / "named.toml"
    for folder in (here, managed):
        folder.mkdir()
        (folder / "agentd.toml").touch()
    monkeypatch.chdir(here)
    environ = {"CONFIGURATION_DIRECTORY": f"/nowhere:{managed}", "AGENTD_CONFIG": str(named)}
    assert find_configuration(environ) == named
    del environ["AGENTD_CONFIG"]
    assert find_configuration(environ) == Path("agentd.toml")
    (here / "agentd.toml").unlink()
    assert find_configuration(environ) == managed / "agentd.toml"


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ('[agentd]\nstate = "mail"', {"AGENTD_STATE": "/one", "STATE_DIRECTORY": "/two"}, "/one"),
        ('[agentd]\nstate = "/mail"', {"STATE_DIRECTORY": "/two"}, "/mail"),
        ("", {"STATE_DIRECTORY": "/two:/three"}, "/two"),
        ("", {}, "state"),
    ],
)
def test_the_state_folder_is_the_same_for_the_daemon_and_for_who_looks_for_it(
    folder: Folder, text: str, environ: dict[str, str], expected: str
) -> None:
    settings = folder.load(text, environ)
    assert settings.agentd.state == str(folder.path / expected)
    assert str(find_state(folder.file, environ)) == settings.agentd.state


@pytest.mark.parametrize(
    ("named", "environ", "expected"),
    [
        (None, {}, "/var/lib/agentd"),
        ("mail", {}, "/etc/agentd/mail"),
        (None, {"STATE_DIRECTORY": "/var/lib/other"}, "/var/lib/other"),
        (None, {"AGENTD_STATE": "/srv/mail"}, "/srv/mail"),
    ],
)
def test_the_machines_own_configuration_has_the_services_state_whoever_asks(
    named: str | None, environ: dict[str, str], expected: str
) -> None:
    assert state_folder(named, Path("/etc/agentd"), environ) == Path(expected)


def test_keys_are_not_read_for_who_needs_none(folder: Folder) -> None:
    folder.file.write_text(alice(key='{ credential = "keys_alice.key" }'))
    assert "alice" in load(folder.file, {}, with_keys=False).identity


def test_who_looks_for_the_state_folder_is_not_stopped_by_a_broken_file(folder: Folder) -> None:
    folder.file.write_text('[agentd]\nstate = "mail"\n[identity.alice]\nkey = 5')
    assert find_state(folder.file, {}) == folder.path / "mail"
    folder.file.write_text("[agentd\n")
    assert find_state(folder.file, {}) == folder.path / "state"


# Problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[agentd]\nstatus = 1", ':2: agentd.status: unknown key; did you mean "state"?'),
        ("\n[agnetd]\n", ':2: agnetd: unknown key; did you mean "agentd"?'),
        ("[agentd.link]\nzzz = 1", ":2: agentd.link.zzz: unknown key; remove it; known here: backoff_first_s, "),
        ("agentd = 3", ":1: agentd: expected a table, found a whole number; write [agentd]"),
        ("[agentd]\n\nstate = 7", ":3: agentd.state: expected text in quotes, found a whole number (7)"),
        (
            "[agentd.intake]\ngap_grace_s = -1",
            ":2: agentd.intake.gap_grace_s: expected a number of seconds, 0 or more, found a whole number (-1)",
        ),
        ("[agentd.intake]\ngap_grace_s = nan", ":2: agentd.intake.gap_grace_s: expected a number of seconds"),
        ("[agentd.link]\nping_interval_s = 0", ":2: agentd.link.ping_interval_s: expected a number of seconds above 0"),
        ("[agentd.dispatch]\nconcurrency = 0", ":2: agentd.dispatch.concurrency: expected a whole number, 1 or more"),
        ("[agentd.dispatch]\nconcurrency = true", ":2: agentd.dispatch.concurrency: expected a whole number"),
        (
            '[agentd.intake]\non_reset = "replai"',
            ':2: agentd.intake.on_reset: expected "replay" or "adopt", found text (\'replai\'); did you mean "replay"?',
        ),
        (
            "[agentd.intake]\nundispatched_high = 5",
            ":1: agentd.intake.undispatched_low: undispatched_low (10000) is above undispatched_high (5); lower ",
        ),
        (
            "[agentd.dispatch]\nretry_first_s = 400",
            ":2: agentd.dispatch.retry_first_s: retry_first_s (400.0) is above retry_max_s (300.0); lower ",
        ),
        (
            "[agentd.dispatch]\nbreaker_max_s = 0.5",
            ":1: agentd.dispatch.breaker_first_s: breaker_first_s (1.0) is above breaker_max_s (0.5); lower ",
        ),
        ("[identity]\nalice = 1", ":2: identity.alice: expected a table, found a whole number"),
        ("identity = 1", ":1: identity: expected tables, found a whole number; write [identity.NAME]"),
        ('[plugin."a b"]\nuse = "echo"', ':1: plugin."a b": a name has 1 to 64 letters'),
        ("[plugin.p]\n", ":1: plugin.p: use is missing; add use = ... (text in quotes)"),
        ('[plugin.p]\nuse = " "', ":2: plugin.p.use: is empty"),
        ('[plugin.p]\nuse = "echo"\nconfig = 5', ":3: plugin.p.config: expected a table, found a whole number"),
    ],
)
def test_a_problem_names_line_key_and_remedy(folder: Folder, text: str, problem: str) -> None:
    assert folder.problem(text).startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('platform = "agentchatt"', ':4: identity.alice.platform: unknown platform; did you mean "agentchat"?'),
        ('platform = "irc"', ":4: identity.alice.platform: unknown platform; remove it; known here: agentchat"),
        ('plugins = ["greter"]', ':4: identity.alice.plugins: there is no plugin "greter"; add [plugin.greter]'),
        ("plugins = []", ":4: identity.alice.plugins: names no plugin; name one, or leave the key out"),
        ('plugins = "echo"', ":4: identity.alice.plugins: expected an array of texts, found text"),
        ("plugins = [1]", ":4: identity.alice.plugins: expected an array of texts, found an array"),
    ],
)
def test_a_problem_of_an_identity_names_line_key_and_remedy(folder: Folder, line: str, problem: str) -> None:
    assert folder.problem(alice(line)).startswith(problem)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('listen = "8788"', 'is not an address and a port; write it like listen = "127.0.0.1:8788"'),
        ('listen = "127.0.0.1:x"', 'is not an address and a port; write it like listen = "127.0.0.1:8788"'),
        (
            'listen = "0.0.0.0:8788"',
            "0.0.0.0 can be reached by other machines; listen on 127.0.0.1, or say allow_remote = true as well",
        ),
    ],
)
def test_a_page_that_others_would_reach_must_be_asked_for(folder: Folder, lines: str, problem: str) -> None:
    assert folder.problem(f"[agentd.http]\n{lines}").endswith(f":2: agentd.http.listen: {problem}")


@pytest.mark.parametrize(
    "lines",
    [
        'listen = "127.0.0.1:0"',
        'listen = "[::1]:8788"',
        'listen = "localhost:8788"',
        "allow_remote = true",
        'listen = "0.0.0.0:8788"\nallow_remote = true',
    ],
)
def test_a_page_for_this_machine_or_as_asked_for_is_taken(folder: Folder, lines: str) -> None:
    assert folder.load(f"[agentd.http]\n{lines}").embedded


def test_a_plugin_that_is_misspelt_or_named_twice_is_told(folder: Folder) -> None:
    text = alice('plugins = ["greter", "greeter", "greeter"]') + '\n[plugin.greeter]\nuse = "echo"'
    assert folder.problems(text) == [
        ':4: identity.alice.plugins: there is no plugin "greter"; did you mean "greeter"?',
        ':4: identity.alice.plugins: names "greeter" more than once; name it once',
    ]


def test_a_plugin_that_is_broken_itself_is_not_called_missing_as_well(folder: Folder) -> None:
    assert folder.problem(alice('plugins = ["p"]') + "\n[plugin.p]\nuse = 5").startswith(":6: plugin.p.use: expected")


def test_a_plugin_file_that_is_not_there_is_told(folder: Folder) -> None:
    problem = folder.problem('[plugin.p]\nuse = "./gone.py"')
    assert problem == f":2: plugin.p.use: there is no file {folder.path}/gone.py; mend the path"


@pytest.mark.parametrize("limit", ["memory_max_mb", "cpu_max_s"])
def test_limits_of_a_process_are_refused_where_there_is_none(folder: Folder, limit: str) -> None:
    assert folder.problem(f'[plugin.p]\nuse = "echo"\n{limit} = 100') == (
        f":3: plugin.p.{limit}: limits a process, which this plugin does not have; "
        f'add isolate = "process", or remove {limit}'
    )
    limited = folder.load(f'[plugin.p]\nuse = "echo"\nisolate = "process"\n{limit} = 100').plugin["p"]
    assert getattr(limited, limit) == 100


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.agentchat.me", "ftp://host", "https://", "https://host:port", "http://[::1"),
        *("https://api..agentchat.me", f"https://{'a' * 64}.me"),
    ],
)
def test_an_address_that_is_none_is_told(folder: Folder, url: str) -> None:
    problem = folder.problem(alice().replace("https://api.agentchat.me", url))
    assert problem.startswith(":2: identity.alice.url: is not an")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "http://api.agentchat.me",
            "http:// would show the key to the network on the way to api.agentchat.me; use https",
        ),
        ("https://api.agentchat.me/v1/", 'ends in "/v1", which agentd adds by itself; write https://api.agentchat.me'),
        ("https://api. agentchat.me", "has white space or special characters within; write it like https://api.agent"),
    ],
)
def test_an_address_that_no_key_may_go_to_or_nothing_stands_at_is_told(folder: Folder, url: str, problem: str) -> None:
    told = folder.problem(alice().replace("https://api.agentchat.me", url))
    assert told.startswith(f":2: identity.alice.url: {problem}")


def test_an_address_of_this_machine_needs_no_encryption(folder: Folder) -> None:
    for url in ("http://127.0.0.1:8787", "http://localhost:8787/base", "http://[::1]:8787"):
        assert folder.load(alice().replace("https://api.agentchat.me", url)).identity["alice"].url == url


@pytest.mark.parametrize("url", [f"https://{KEY}@host", f"https://host/?key={KEY}", f"https://host/#{KEY}"])
def test_an_address_with_a_key_in_it_is_refused_without_being_quoted(folder: Folder, url: str) -> None:
    problem = folder.problem(alice().replace("https://api.agentchat.me", url))
    assert "where a key would show" in problem
    assert KEY not in problem


def test_every_problem_is_told_at_once_in_the_order_of_the_file(folder: Folder) -> None:
    text = """\
[identity.alice]
platform = "irc"
url = "nowhere"
key = { env = "GONE" }
plugins = ["gone"]
[identity.bob]
url = 5
[agentd]
colour = "red"
[agentd.rest]
retries = -1
[plugin.p]
use = "echo"
attempts = "many"
"""
    places = [(problem.split(":")[1], problem.split(": ")[1]) for problem in folder.problems(text)]
    assert places == [
        ("2", "identity.alice.platform"),
        ("3", "identity.alice.url"),
        ("4", "identity.alice.key"),
        ("5", "identity.alice.plugins"),
        ("6", "identity.bob"),
        ("7", "identity.bob.url"),
        ("9", "agentd.colour"),
        ("11", "agentd.rest.retries"),
        ("14", "plugin.p.attempts"),
    ]


def test_text_that_is_not_toml_is_told_with_its_line(folder: Folder) -> None:
    assert folder.problem('[agentd]\nstate = "x\n').startswith(":2: not TOML: Illegal character")
    assert folder.problem("a = 1\na = 2\n").startswith(":2: not TOML: Cannot overwrite a value")


def test_what_is_nested_too_deeply_is_told(folder: Folder) -> None:
    assert "nested too deeply" in folder.problem("a = " + "[" * 9_000)
    assert find_state(folder.file, {}) == folder.path / "state"


def test_a_number_that_nobody_can_mean_is_told(folder: Folder) -> None:
    assert "a number of thousands of digits" in folder.problem("[agentd.intake]\nheld_max = " + "9" * 5_000)
    told = folder.problem("[agentd.intake]\nheld_max = 0x" + "f" * 5_000)
    assert told == ":2: agentd.intake.held_max: expected a whole number, 1 or more, found a whole number"


def test_a_home_that_is_not_known_is_told_where_something_is_looked_for_in_it(folder: Folder) -> None:
    problems = folder.problems(
        '[agentd]\nstate = "~nobody-of-that-name/s"\n'
        + alice('plugins = ["p"]', key='{ file = "~nobody-of-that-name/k" }')
        + '\n[plugin.p]\nuse = "~nobody-of-that-name/p.py"'
    )
    assert [problem.split(": ")[1] for problem in problems] == ["agentd.state", "identity.alice.key", "plugin.p.use"]
    assert problems[0].endswith("begins in a home that is not known here; name the folder from / on")
    assert find_state(folder.file, {}) == folder.path / "~nobody-of-that-name" / "s"


def test_a_plugin_whose_path_is_longer_than_any_is_told(folder: Folder) -> None:
    problem = folder.problem(f'[plugin.p]\nuse = "./{"a" * 300}.py"')
    assert problem.endswith("cannot be looked at (File name too long); mend the path")


def test_a_key_is_told_without_the_control_characters_in_it(folder: Folder) -> None:
    assert folder.problem('"a\\u001b[31mb" = 1').startswith(r':1: "a\u001b[31mb": unknown key')


@pytest.mark.parametrize("key", ['{ file = "a\\u0000" }', '{ command = "a\\u0000" }', '{ command = ["a", "\\u0000"] }'])
def test_a_character_that_no_path_may_hold_is_told_with_its_place(folder: Folder, key: str) -> None:
    told = folder.problem(alice(key=key))
    assert told.startswith(":3: identity.alice.key.")
    assert r'holds "\u0000"' in told


def test_a_file_that_is_missing_or_not_text_is_told(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read \(No such file or directory\); name another"):
        load(folder.path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(None, {"AGENTD_CONFIG": str(folder.path / "nowhere.toml")})
    folder.file.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 5; save it as UTF-8"):
        load(folder.file, {})


# Keys


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("{}", "names no source; write one of env, file, credential, command: "),
        ('{ env = "ALICE_KEY", file = "x" }', "names env and file; keep one of them"),
        (f'"{KEY}"', "expected a table, found text; say where the key lies, not the key itself: key = { file = "),
        ('{ env = "GONE" }', "the environment variable GONE is not set; set it"),
        ('{ file = "gone.key" }', "gone.key cannot be read (No such file or directory); create it"),
        ('{ file = "." }', "cannot be read (Is a directory); create it with the key in it"),
        ('{ command = "false" }', "the command false failed (exit status 1); run it by hand to see why"),
        ('{ command = "no-such-program-anywhere" }', "cannot be run (No such file or directory); install it"),
        ('{ command = "" }', "the command is empty; name a program"),
        ('{ command = "echo \'open" }', "the command has an open quote; close it"),
        ('{ command = "true" }', "the key is empty; put the key there"),
        ('{ command = "echo short" }', "the key is shorter than 8 characters"),
        ('{ command = "echo two words-in-it" }', "the key has white space"),
        ('{ credential = "alice" }', "CREDENTIALS_DIRECTORY is not set; run agentd as a systemd unit"),
    ],
)
def test_a_key_that_cannot_be_had_is_told_with_the_remedy(folder: Folder, key: str, problem: str) -> None:
    told = folder.problem(alice(key=key))
    assert told.startswith(":3: identity.alice.key: ")
    assert problem in told
    assert KEY not in told


def test_a_key_under_a_wrong_name_is_not_also_called_missing(folder: Folder) -> None:
    assert folder.problem(alice(key='{ fil = "x" }')) == ':3: identity.alice.key.fil: unknown key; did you mean "file"?'
    assert folder.problem(alice(key="{ env = 5 }")).startswith(":3: identity.alice.key.env: expected text in quotes")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_open_to_others_is_refused(folder: Folder, mode: int) -> None:
    file = folder.key_file("alice.key", KEY, mode)
    told = folder.problem(alice(key='{ file = "alice.key" }'))
    assert f"{file} is open to other users (mode {mode:04o}); run: chmod 600 {file}" in told
    assert KEY not in told


def test_a_key_file_that_its_owner_alone_can_read_is_taken(folder: Folder) -> None:
    folder.key_file("alice.key", f"{KEY}\n", 0o400)
    assert resolve_key(folder.load(alice(key='{ file = "alice.key" }')).identity["alice"].key).reveal() == KEY


def test_a_named_pipe_in_place_of_a_key_file_does_not_hang(folder: Folder) -> None:
    os.mkfifo(folder.path / "alice.key", 0o600)
    assert "is not a regular file" in folder.problem(alice(key='{ file = "alice.key" }'))


def test_a_file_that_is_no_key_is_not_quoted(folder: Folder) -> None:
    (folder.path / "alice.key").write_bytes(b"\xff" * 40)
    (folder.path / "alice.key").chmod(0o600)
    assert "gave what is not plain text" in folder.problem(alice(key='{ file = "alice.key" }'))
    folder.key_file("alice.key", "k" * 10_000)
    assert "gave more than 8192 bytes" in folder.problem(alice(key='{ file = "alice.key" }'))


def test_a_command_may_be_one_text_or_an_array_and_no_shell_sees_it(folder: Folder) -> None:
    for command in ("\"echo 'key-$HOME'\"", '["echo", "key-$HOME"]'):
        identity = folder.load(alice(key=f"{{ command = {command} }}")).identity["alice"]
        assert resolve_key(identity.key).reveal() == "key-$HOME"


def test_what_a_failing_command_printed_is_not_quoted(folder: Folder) -> None:
    program = f"import sys; print('{KEY}'); print('{KEY}', file=sys.stderr); sys.exit(3)"
    told = folder.problem(alice(key=f'{{ command = ["{sys.executable}", "-c", "{program}"] }}'))
    assert "failed (exit status 3)" in told
    assert KEY not in told


def test_a_credential_is_read_from_the_folder_that_systemd_names(folder: Folder) -> None:
    # systemd shows its access control list as group rights.
    folder.key_file("alice", KEY, 0o440)
    environ = {"CREDENTIALS_DIRECTORY": str(folder.path)}
    identity = folder.load(alice(key='{ credential = "alice" }'), environ).identity["alice"]
    assert resolve_key(identity.key, environ).reveal() == KEY


@pytest.mark.parametrize("name", ["../alice", "..", ""])
def test_a_credential_cannot_name_a_file_elsewhere(folder: Folder, name: str) -> None:
    told = folder.problem(alice(key=f'{{ credential = "{name}" }}'), {"CREDENTIALS_DIRECTORY": str(folder.path)})
    assert "a credential is a plain name without slashes" in told


def test_a_plugins_secret_is_read_from_beside_the_configuration_and_not_shown(folder: Folder) -> None:
    (folder.path / "model.key").touch(0o600)
    (folder.path / "model.key").write_text(OTHER_KEY)
    text = alice() + '\n[plugin.greeter]\nuse = "echo"\n[plugin.greeter.secrets]\nmodel = { file = "model.key" }\n'
    source = folder.load(text).plugin["greeter"].secrets["model"]
    assert resolve_key(source).reveal() == OTHER_KEY
    (folder.path / "model.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"agentd.toml:\d+: plugin.greeter.secrets.model: .*chmod 600") as error:
        folder.load(text)
    assert OTHER_KEY not in str(error.value)
    with pytest.raises(ConfigError, match="expected a table, found text") as error:
        folder.load(text.replace('{ file = "model.key" }', f'"{OTHER_KEY}"'))
    assert OTHER_KEY not in str(error.value)


def test_a_rotated_key_is_found_when_it_is_read_again(folder: Folder) -> None:
    folder.key_file("alice.key", KEY)
    identity = folder.load(alice(key='{ file = "alice.key" }')).identity["alice"]
    folder.key_file("alice.key", OTHER_KEY)
    assert resolve_key(identity.key).reveal() == OTHER_KEY


def test_two_identities_with_the_same_key_are_refused_without_printing_it(folder: Folder) -> None:
    folder.key_file("copy.key", KEY)
    text = alice() + '\n[identity.twin]\nurl = "https://api.agentchat.me"\nkey = { file = "copy.key" }'
    told = folder.problem(text)
    assert told.startswith(":6: identity.twin.key: is the same key as that of identity alice; give each its own")
    assert KEY not in told


def test_two_identities_with_keys_of_their_own_are_fine(folder: Folder) -> None:
    text = alice() + '\n[identity.bob]\nurl = "https://api.agentchat.me"\nkey = { env = "BOB_KEY" }'
    assert list(folder.load(text).identity) == ["alice", "bob"]


def test_a_key_shows_itself_only_when_asked(folder: Folder) -> None:
    secret = resolve_key(folder.load(alice()).identity["alice"].key, ENVIRON)
    assert KEY not in f"{secret} {secret!r} {[secret]} {vars(type(secret))}" + "%s" % secret  # noqa: UP031 -- any way to print
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.deepcopy(secret)
    try:
        raise ValueError(secret)
    except ValueError:
        assert KEY not in traceback.format_exc()


def test_a_key_that_was_read_is_blotted_out_of_the_log_from_then_on(folder: Folder) -> None:
    environ = {"ALICE_KEY": "not-like-any-known-key"}
    assert logs.redacted("not-like-any-known-key") == "not-like-any-known-key"
    folder.load(alice(), environ)
    assert logs.redacted("x=not-like-any-known-key") == "x=[redacted]"


# Lines

BARE = st.text("abcXYZ019-_", min_size=1, max_size=6)
QUOTED = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=6)
VALUES = st.sampled_from(
    [
        "1",
        '"[a]\\"# b"',
        "'it\"s = '",
        "true # [x]",
        "[1,\n 2, # ]\n [3]]",
        '"""\n[no]\nk = 1\n""""',
        "'''a\n'b' = 1'''",
        "{ k = { d = [1, 2] }, e = '}' }",
    ]
)


def basic(part: str) -> str:
    escaped = "".join(f"\\u{ord(char):04x}" if ord(char) < 32 or char in '"\\\x7f' else char for char in part)
    return f'"{escaped}"'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str, ...], int]]:
    """A TOML text, and the line of each key in it."""
    lines: dict[tuple[str, ...], int] = {}
    text = ""
    tables = draw(st.lists(st.tuples(BARE | QUOTED, st.booleans()), unique_by=lambda table: table[0], max_size=4))
    for name, dotted in tables:
        text += draw(st.sampled_from(["", "\n", "# [x]\n", "  "]))
        path: tuple[str, ...] = (name, "in ner") if dotted else (name,)
        lines[path] = text.count("\n") + 1
        text += f"[ {' . '.join(map(basic, path))} ] # k = 1\n"
        keys = draw(st.lists(st.tuples(BARE, st.booleans(), VALUES), unique_by=lambda key: key[0], max_size=4))
        for key, deep, value in keys:
            full = (*path, key, "x y") if deep else (*path, key)
            lines[full] = text.count("\n") + 1
            text += f"  {key}{'.' + basic('x y') if deep else ''} = {value}\n"
    return text, lines


@given(documents())
def test_every_key_of_any_document_is_found_on_its_line(document: tuple[str, dict[tuple[str, ...], int]]) -> None:
    text, lines = document
    tomllib.loads(text)  # the text is what it claims to be
    found = KeyLines(text)
    assert {path: found.of(path) for path in lines} == lines


@given(st.text("ab[]{}\"'=.#\n\\ "))
def test_the_scanner_ends_on_any_text(text: str) -> None:
    KeyLines(text)


def test_a_key_within_an_inline_table_has_the_line_of_that_table() -> None:
    found = KeyLines("a = 1\n[t]\nk = { x = { y = 1 } }\n")
    assert found.of(("t", "k", "x", "y")) == 3
    assert found.of(("t", "gone")) == 2
    assert found.of(("gone",)) is None


TRACING = "[agentd.tracing]\nenabled = true\n"


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("", "http://127.0.0.1:4318/v1/traces"),
        ('endpoint = "http://localhost:4318"', "http://localhost:4318/v1/traces"),
        ('endpoint = "https://tempo.example/otlp/"', "https://tempo.example/otlp/v1/traces"),
        ('endpoint = "https://tempo.example/v1/traces"', "https://tempo.example/v1/traces"),
    ],
)
def test_traces_go_where_the_configuration_says(folder: Folder, endpoint: str, address: str) -> None:
    assert collector_of(folder.load(TRACING + endpoint).agentd.tracing, {}) == address


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://one.example"}, "https://one.example/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://two.example/as/it/is"}, "https://two.example/as/it/is"),
    ],
)
def test_where_it_is_silent_the_variables_of_opentelemetry_say(
    folder: Folder, environ: dict[str, str], address: str
) -> None:
    assert collector_of(folder.load(TRACING).agentd.tracing, environ) == address
    named = folder.load(TRACING + 'endpoint = "https://three.example"').agentd.tracing
    assert collector_of(named, environ) == "https://three.example/v1/traces"
    assert not folder.load("", environ).agentd.tracing.enabled


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        (
            "http://tempo.example:4318",
            "http:// would show traces to the network on the way to tempo.example; use https",
        ),
        ("tempo.example:4318", "is not an http or https address; write it like http://127.0.0.1:4318"),
        (f"https://{KEY}@tempo.example", "has a user, a query or a fragment, where a key would show"),
    ],
)
def test_a_collector_that_must_not_be_spoken_to_is_refused_wherever_it_is_named(
    folder: Folder, endpoint: str, told: str
) -> None:
    problem = folder.problem(f'{TRACING}endpoint = "{endpoint}"')
    assert problem.startswith(f":3: agentd.tracing.endpoint: {told}")
    assert KEY not in problem
    assert told in folder.problem(TRACING, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})


def test_a_header_of_the_collector_is_read_like_a_key_and_may_have_two_words(folder: Folder) -> None:
    folder.key_file("collector.key", f"Bearer {OTHER_KEY}\n")
    text = TRACING + 'headers.authorization = { file = "collector.key" }'
    source = folder.load(text).agentd.tracing.headers["authorization"]
    assert resolve_header(source).reveal() == f"Bearer {OTHER_KEY}"
    assert logs.redacted(f"with {OTHER_KEY} only") == "with [redacted] only"
    assert logs.redacted("Bearer of good news") == "Bearer [redacted] good news"  # as of any bearer, not as of ours
    folder.key_file("collector.key", "Bearer x", mode=0o644)
    assert "agentd.tracing.headers.authorization: " in (told := folder.problem(text))
    assert "chmod 600" in told
    told = folder.problem(TRACING + f'headers.authorization = "{OTHER_KEY}"')
    assert "expected a table, found text" in told
    assert OTHER_KEY not in told


@pytest.mark.parametrize("ratio", ["-0.1", "1.5", '"all"'])
def test_a_sample_is_a_part_of_the_whole(folder: Folder, ratio: str) -> None:
    assert "expected a number from 0 to 1" in folder.problem(f"{TRACING}sample_ratio = {ratio}")


def test_traces_without_opentelemetry_name_what_to_install(folder: Folder) -> None:
    folder.file.write_text(TRACING)
    check = (
        f"import sys; sys.modules['opentelemetry'] = None; sys.argv[1:] = ['check', '--config', {str(folder.file)!r}]"
    )
    command = [sys.executable, "-c", f"{check}; from agentd.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "agentd.toml:2: agentd.tracing.enabled: OpenTelemetry is not installed; run: pip install 'agentd[otel]'" in (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (str, "text in quotes"),
        (int | None, "a whole number"),
        (Optional[float], "a number"),  # noqa: UP045 -- plugins may spell it so
        (list[str], "an array of texts"),
        (tuple[str, ...], "an array of texts"),
        (set[int], "an array"),
        (dict[str, int], "a table"),
        (Literal["on", "off"], '"on" or "off"'),
        (Annotated[str, msgspec.Meta(min_length=1)], "text in quotes"),
        (Annotated[str, msgspec.Meta(description="an address")], "an address"),
        (str | int, "text in quotes or a whole number"),
        (datetime, "a value"),
        (Settings, "a table"),
    ],
)
def test_what_a_setting_has_to_be_is_told_in_the_words_of_the_file(kind: Any, told: str) -> None:
    assert expected(kind) == told


def test_encryption_without_cryptography_names_what_to_install(folder: Folder) -> None:
    folder.key_file("journal.key", "5a" * 32)
    folder.file.write_text('[agentd.journal.encryption]\nkey = { file = "journal.key" }\n')
    check = (
        f"import sys; sys.modules['cryptography'] = None; sys.argv[1:] = ['check', '--config', {str(folder.file)!r}]"
    )
    command = [sys.executable, "-c", f"{check}; from agentd.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "agentd.toml:1: agentd.journal.encryption: cryptography is not installed" in done.stdout + done.stderr
    assert "pip install 'agentd[encryption]'" in done.stdout + done.stderr


def test_the_key_that_encrypts_is_read_like_any_other_and_is_32_bytes(folder: Folder) -> None:
    text = '[agentd.journal.encryption]\nkey = { file = "journal.key" }\nold_key = { file = "old.key" }\n'
    folder.key_file("journal.key", "5a" * 32)
    folder.key_file("old.key", OTHER_KEY)
    told = folder.problem(text)
    assert ":3: agentd.journal.encryption.old_key: it is not 32 bytes in base64 or hexadecimal" in told
    assert OTHER_KEY not in told
    folder.key_file("old.key", "WlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlo=")
    assert folder.load(text).agentd.journal.encryption.old_key is not None
    folder.key_file("journal.key", "5a" * 32, mode=0o644)
    assert "chmod 600" in folder.problem(text)
