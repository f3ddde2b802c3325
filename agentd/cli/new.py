"""`agentd new`: files to begin with.

Always true: nothing that exists is touched. What is written runs as it is: the plugin as well as its test.
Not here: what the files say (templates/).
"""

from __future__ import annotations

import importlib.resources
import json
import keyword
import re
import shlex
import sys
from pathlib import Path
from string import Template

from agentd.errors import AgentdError

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_NAME_MAX_CHARS = 50
_TAKEN = frozenset({"agentd", "aiohttp", "aiosqlite", "click", "msgspec", "orjson", "pytest", "uvloop", "websockets"})


def name_problem(name: str) -> str | None:
    """Why a plugin cannot be called so, with the remedy; None if it can."""
    module = module_of(name)
    if not _NAME.fullmatch(name) or len(name) > _NAME_MAX_CHARS:
        return f"a name has up to {_NAME_MAX_CHARS} small letters, digits, dashes and underscores, such as order-desk"
    if module.startswith("test_") or keyword.iskeyword(module):
        return "its file could not be imported as a plugin; choose another name"
    if module in sys.stdlib_module_names or module in _TAKEN:
        return f"its file would hide the Python module {module}; choose another name"
    return None


def module_of(name: str) -> str:
    """The Python module of a plugin."""
    return name.replace("-", "_")


def new_plugin(name: str, inside: Path) -> list[Path]:
    """Write a plugin with its test into a new folder. Returns the files. Raises AgentdError if there is no room."""
    folder = inside / name
    try:
        inside.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise AgentdError(f"{folder} exists already; choose another name, or another folder with --in") from None
    except OSError as error:
        raise AgentdError(f"{folder} cannot be made ({error.strerror}); choose another folder with --in") from None
    written = []
    for template, file in _files(module_of(name)):
        text = Template(template).substitute(name=name, module=module_of(name))
        (folder / file).write_text(text, encoding="utf-8")
        written.append(folder / file)
    return written


def next_steps(name: str, inside: Path) -> str:
    """What to do with a plugin that was just written."""
    folder = (inside / name).absolute()
    file = folder / f"{module_of(name)}.py"
    return Template(_template("next_steps")).substitute(
        name=name,
        folder=shlex.quote(str(folder)),
        file=shlex.quote(str(file)),
        use=json.dumps(str(file), ensure_ascii=False),  # which is how TOML writes it, too
    )


def _files(module: str) -> list[tuple[str, str]]:
    return [
        (_template("plugin.py"), f"{module}.py"),
        (_template("test_plugin.py"), f"test_{module}.py"),
        (_template("pytest.ini"), "pytest.ini"),
    ]


def _template(name: str) -> str:
    return (importlib.resources.files("agentd.cli") / "templates" / f"{name}.template").read_text(encoding="utf-8")
