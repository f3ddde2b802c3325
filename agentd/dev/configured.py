"""The configuration of a daemon that runs one plugin on a hub of ours.

Always true: the key is in the daemon's environment, never in the file.
Not here: reading it (config).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from agentd.config import is_path
from agentd.errors import ConfigError

KEY_VARIABLE = "AGENTD_DEV_KEY"

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")

_CONFIG = """[agentd]
state = {state}

[identity.agent]
url = {url}
key = {{ env = "{variable}" }}
plugins = [{name}]
loop_guard = {{ answers_max = 0 }}   # it is a person who speaks to it

[plugin.{name}]
use = {use}
config = {config}
"""


def plugin_name(use: str) -> str:
    """What to call a plugin that is named by path, module or entry point."""
    stem = Path(use).stem if is_path(use) else use.partition(":")[0]
    return _NOT_IN_NAMES.sub("-", stem).strip("-") or "plugin"


def problem_of(use: str) -> str | None:
    """Why a plugin that is named like this cannot be there, with the remedy; None if it may be."""
    if is_path(use) and not Path(use).expanduser().exists():
        return f"there is no file {use}; mend the path, or begin one with: agentd new plugin NAME"
    return None


def configuration(use: str, config: Mapping[str, Any], state: Path, url: str) -> str:
    """The text of the file. use: a path must be absolute."""
    name = _toml(plugin_name(use))
    return _CONFIG.format(
        state=_toml(str(state)), url=_toml(url), variable=KEY_VARIABLE, name=name, use=_toml(use), config=_toml(config)
    )


def settings_from(file: Path | None, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A plugin's settings from a TOML file and from pairs, which win.

    A pair's value is TOML where it can be, else text; dots in its key lead into tables. Raises ConfigError.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError([f"{file}: cannot be read ({error.strerror}); mend the path"]) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError([f"{file}: not TOML: {error}; mend it"]) from None
    for key, value in pairs:
        *tables, last = key.split(".")
        table = settings
        for each in tables:
            table = table.setdefault(each, {})
            if not isinstance(table, dict):
                raise ConfigError([f"--set {key}: {each} is no table"])
        table[last] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    """A value on one line."""
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            pairs = (f"{key if _BARE.fullmatch(key) else _toml(key)} = {_toml(each)}" for key, each in value.items())
            return f"{{ {', '.join(pairs)} }}"
