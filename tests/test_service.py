"""`agentd service`: what it would write, what it writes below a folder, and what it refuses."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentd import cli
from agentd.cli import service

UNITS = Path(__file__).parent.parent / "systemd"
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd's tools are not on this machine"
)


def agentd_command(*words: str | Path, stdin: str | None = None, **environ: str) -> Result:
    clean = {name: None for name in os.environ if name.startswith("AGENTD_")}
    runner = CliRunner(env={**clean, **environ})
    return runner.invoke(cli.cli, ["service", *map(str, words)], input=stdin, prog_name="agentd")


@pytest.fixture
def in_opt(monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment as if it had been installed for all users."""
    monkeypatch.setattr(service, "own_program", lambda: Path("/opt/agentd/bin/agentd"))
    monkeypatch.setattr(service, "own_parts", lambda program: [program, Path("/usr/bin/python3")])


@pytest.mark.usefixtures("in_opt")
def test_a_dry_run_shows_the_whole_unit_and_writes_nothing(tmp_path: Path) -> None:
    told = agentd_command("install", "--root", tmp_path, "--dry-run")
    assert told.exit_code == 0, told.output
    assert (UNITS / "agentd.service").read_text() in told.stdout
    assert f"writes {tmp_path}/etc/systemd/system/agentd.service" in told.stdout
    assert f"makes the folder {tmp_path}/etc/agentd/credentials (mode 0700)" in told.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("in_opt")
def test_below_a_folder_it_writes_the_unit_and_the_folder_that_the_unit_needs(tmp_path: Path) -> None:
    told = agentd_command("install", "--root", tmp_path, "--yes")
    assert told.exit_code == 0, told.output
    assert "enable --now agentd" in told.stderr
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["etc/systemd/system/agentd.service"]
    unit = tmp_path / written[0]
    assert unit.read_text() == (UNITS / "agentd.service").read_text()
    assert unit.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "etc/agentd/credentials").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("in_opt")
def test_a_second_install_changes_nothing_and_a_changed_unit_is_told(tmp_path: Path) -> None:
    agentd_command("install", "--root", tmp_path, "--yes")
    assert "in place already" in agentd_command("install", "--root", tmp_path).stderr
    unit = tmp_path / "etc/systemd/system/agentd.service"
    unit.write_text(unit.read_text().replace("30s", "60s"))
    assert "differs" in agentd_command("status", "--root", tmp_path).stdout
    assert "replaces" in agentd_command("install", "--root", tmp_path, "--yes").stdout
    assert json.loads(agentd_command("status", "--root", tmp_path, "--json").stdout)["current"] is True


@pytest.mark.usefixtures("in_opt")
def test_nothing_is_written_where_nobody_can_be_asked(tmp_path: Path) -> None:
    told = agentd_command("install", "--root", tmp_path)
    assert told.exit_code == 2
    assert "--yes" in told.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("in_opt")
def test_uninstall_removes_the_unit_and_nothing_else(tmp_path: Path) -> None:
    agentd_command("install", "--root", tmp_path, "--yes")
    assert "removes" in agentd_command("uninstall", "--root", tmp_path, "--dry-run").stdout
    assert (tmp_path / "etc/systemd/system/agentd.service").exists()
    assert agentd_command("uninstall", "--root", tmp_path, "--yes").exit_code == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (tmp_path / "etc/agentd/credentials").is_dir()
    told = agentd_command("status", "--root", tmp_path)
    assert told.exit_code == 1
    assert "not installed" in told.stdout


@pytest.mark.usefixtures("in_opt")
def test_the_hub_has_a_unit_of_its_own(tmp_path: Path) -> None:
    agentd_command("install", "--hub", "--root", tmp_path, "--yes")
    assert (tmp_path / "etc/systemd/system/agentd-hub.service").exists()
    assert agentd_command("install", "--hub", "--user", "--root", tmp_path).exit_code == 2


@pytest.mark.parametrize("home", ["/root/venv", "/home/alice/venv", "/tmp/venv"])
def test_a_system_unit_is_refused_for_a_program_that_it_would_not_see(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "own_parts", lambda program: [Path("/opt/agentd/bin/agentd"), Path(home) / "python3"])
    told = agentd_command("install", "--root", tmp_path, "--yes")
    assert told.exit_code == 1
    assert home in told.stderr
    assert "/opt/agentd" in told.stderr
    assert "--user" in told.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_users_unit_names_the_program_that_installed_it(tmp_path: Path) -> None:
    told = agentd_command("install", "--user", "--root", tmp_path, "--yes", HOME="/home/alice", XDG_CONFIG_HOME="")
    assert told.exit_code == 0, told.output
    unit = tmp_path / "home/alice/.config/systemd/user/agentd.service"
    assert f"ExecStart={sys.prefix}/bin/agentd run\n" in unit.read_text()
    assert "/opt/agentd" not in unit.read_text()
    assert (Path(sys.prefix) / "bin" / "agentd").exists()


@pytest.mark.parametrize(
    "environ",
    [{"XDG_CONFIG_HOME": "relative", "HOME": "/home/alice"}, {"XDG_CONFIG_HOME": "/home/alice/.config", "HOME": ""}],
)
def test_a_folder_that_counts_by_the_rules_is_found_whatever_is_set(environ: dict[str, str], tmp_path: Path) -> None:
    assert agentd_command("install", "--user", "--root", tmp_path, "--yes", **environ).exit_code == 0
    assert (tmp_path / "home/alice/.config/systemd/user/agentd.service").is_file()


def test_without_home_it_is_that_of_the_user_and_who_has_none_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"XDG_CONFIG_HOME": "", "HOME": ""}
    told = agentd_command("install", "--user", "--root", tmp_path, "--yes", **nothing)
    assert f"writes {tmp_path}{pwd.getpwuid(os.getuid()).pw_dir}/.config/systemd/user/" in told.stdout

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    told = agentd_command("install", "--user", "--root", tmp_path, "--yes", **nothing)
    assert told.exit_code == 1
    assert told.stderr == "agentd: this user has no home; set HOME, or install a service of the machine\n"


def test_a_service_is_told_of_also_by_an_agentd_that_could_not_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        agentd_command(
            "install", "--user", "--root", tmp_path, "--yes", HOME="/home/alice", XDG_CONFIG_HOME=""
        ).exit_code
        == 0
    )
    monkeypatch.setattr(service, "own_program", lambda: Path("/home/alice/my programs/bin/agentd"))
    told = agentd_command("status", "--user", "--root", tmp_path, HOME="/home/alice", XDG_CONFIG_HOME="")
    assert told.exit_code == 0
    assert "differs from what this agentd would write; see: agentd service install --user --dry-run" in told.stdout


def test_an_environment_without_the_program_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    told = agentd_command("install", "--user", "--root", tmp_path, "--yes")
    assert told.exit_code == 1
    assert f"{tmp_path}/agentd is not there" in told.stderr


def test_the_parts_that_must_be_seen_are_those_that_run() -> None:
    parts = service.own_parts(service.own_program())
    assert Path(sys.executable).resolve() in parts
    assert Path(cli.__file__).parent.parent / "__init__.py" in parts


@pytest.mark.parametrize("name", ["a b", "a%h", "a$b", "a\nb"])
def test_a_path_that_a_unit_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(service.ServiceError, match="another folder"):
        service.unit_text("agentd.service", Path("/opt") / name)


def test_a_folder_that_may_not_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    blocked = tmp_path / "etc"
    blocked.write_text("a file where a folder should be")
    told = agentd_command("install", "--user", "--root", tmp_path, "--yes", XDG_CONFIG_HOME="/etc")
    assert told.exit_code == 1
    assert "cannot be written" in told.stderr


def fake_systemctl(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
    (folder / "systemctl").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def shows(**told: str) -> str:
    """What makes systemctl show this."""
    shown = {
        "LoadState": "loaded",
        "MainPID": "0",
        "NRestarts": "0",
        "Result": "success",
        "StatusText": "2 live",
        **told,
    }
    return f"printf '{''.join(f'{name}={value}' + chr(92) + 'n' for name, value in shown.items())}'"


def test_the_manager_is_told_of_a_new_unit_and_asked_how_it_is(tmp_path: Path) -> None:
    path = fake_systemctl(
        tmp_path / "bin", shows(ActiveState="active", SubState="running", MainPID="77", NRestarts="1")
    )
    config = str(tmp_path / "config")
    told = agentd_command("install", "--user", "--yes", PATH=path, XDG_CONFIG_HOME=config)
    assert told.exit_code == 0
    assert "with the unit that it was started with; systemctl --user restart agentd" in told.stderr
    told = agentd_command("status", "--user", PATH=path, XDG_CONFIG_HOME=config)
    assert told.exit_code == 0
    assert "active (running), pid 77" in told.stdout
    assert "says: 2 live" in told.stdout
    assert "why" not in told.stdout
    assert agentd_command("uninstall", "--user", "--yes", PATH=path, XDG_CONFIG_HOME=config).exit_code == 0
    calls = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert [call.split()[2] for call in calls] == ["daemon-reload", "show", "show", "disable", "daemon-reload"]
    assert all(call.startswith("--user --no-pager") for call in calls)


def test_a_service_that_failed_is_told_with_where_to_read_why(tmp_path: Path) -> None:
    path = fake_systemctl(tmp_path / "bin", shows(ActiveState="failed", SubState="failed", Result="watchdog"))
    told = agentd_command("status", "--user", PATH=path, XDG_CONFIG_HOME=str(tmp_path))
    assert told.exit_code == 1
    assert "agentd: failed (failed)\n" in told.stdout, "without a pid"
    assert "why: journalctl --user -u agentd -n 50" in told.stdout


def test_of_a_service_that_is_not_there_nothing_else_is_told(tmp_path: Path) -> None:
    path = fake_systemctl(tmp_path / "bin", shows(LoadState="not-found", ActiveState="inactive"))
    told = agentd_command("status", "--hub", PATH=path)
    assert told.exit_code == 1
    assert told.stdout.endswith("is not there; install it with: agentd service install --hub\n")


def test_what_the_manager_says_against_it_is_told(tmp_path: Path) -> None:
    path = fake_systemctl(tmp_path / "bin", "echo 'Failed to connect to bus' >&2; exit 1")
    told = agentd_command("status", "--user", PATH=path, XDG_CONFIG_HOME=str(tmp_path))
    assert told.exit_code == 1
    assert "systemctl --user show failed: Failed to connect to bus" in told.stderr


def test_a_machine_without_systemd_is_told_so(tmp_path: Path) -> None:
    told = agentd_command("status", "--user", PATH=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert told.exit_code == 1
    assert "does not run systemd" in told.stderr


@needs_analyze
@pytest.mark.parametrize("name", ["agentd", "agentd-hub"])
def test_the_system_units_are_well_formed_and_expose_little(name: str, tmp_path: Path) -> None:
    # The program's place on a server is not there on a developer's machine; everything else is checked as it stands.
    unit = tmp_path / f"{name}.service"
    unit.write_text(service.unit_text(unit.name, Path("/bin/true")))
    assert analyze("verify", "--man=no", unit) == (0, "")
    assert analyze("security", "--offline=true", "--threshold=12", unit) == (0, "")


@needs_analyze
def test_the_users_unit_is_well_formed(tmp_path: Path) -> None:
    unit = tmp_path / "agentd.service"
    unit.write_text(service.unit_text("agentd-user.service", Path("/bin/true")))
    assert analyze("--user", "verify", "--man=no", unit, XDG_RUNTIME_DIR=str(tmp_path)) == (0, "")


def analyze(*words: str | Path, **environ: str) -> tuple[int, str]:
    command = ["systemd-analyze", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_stop_may_take_longer_than_running_handlers_get() -> None:
    from agentd.config import Dispatch

    for name in ("agentd.service", "agentd-user.service"):
        text = (UNITS / name).read_text()
        stop_s = float(
            next(line for line in text.splitlines() if line.startswith("TimeoutStopSec=")).split("=")[1][:-1]
        )
        assert stop_s > Dispatch().drain_timeout_s + 10
