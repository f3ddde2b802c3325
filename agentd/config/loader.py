"""One TOML file into Settings, or every problem in it.

The text is read table by table against the types of settings.py. What is broken is noted and left out, and the checks
that look across tables run on the rest, so that one round of mending is enough.

Always true: a problem names the file, the line where there is one, the key and the remedy. It quotes no value that
stands under `key`, where somebody may have written the key itself.
Not here: which plugins can be loaded (host), which keys a server accepts.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from agentd.config.collector import COLLECTOR, collector_of
from agentd.config.keys import Secret, resolve_encryption_key, resolve_header, resolve_key
from agentd.config.lines import KeyLines, KeyPath
from agentd.config.listening import listening_address
from agentd.config.search import anchored, find_configuration, is_homeless, state_folder
from agentd.config.settings import PLATFORMS, Identity, KeySource, PluginSettings, Settings
from agentd.config.spelling import expected, spelled
from agentd.core.hosts import is_loopback
from agentd.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SYNTAX_PLACE = re.compile(r" \(at line (\d+), column \d+\)$")
_WHOLE_MAX = 2**63 - 1  # what TOML promises that a whole number may be
_RISING = (  # pairs of settings of which the first may not exceed the second
    (("intake", "undispatched_low"), ("intake", "undispatched_high")),
    (("intake", "undispatched_low_mb"), ("intake", "undispatched_high_mb")),
    (("intake", "held_max"), ("intake", "held_total_max")),
    (("link", "backoff_first_s"), ("link", "backoff_max_s")),
    (("rest", "backoff_first_s"), ("rest", "backoff_max_s")),
    (("sending", "retry_first_s"), ("sending", "retry_max_s")),
    (("dispatch", "retry_first_s"), ("dispatch", "retry_max_s")),
    (("dispatch", "breaker_first_s"), ("dispatch", "breaker_max_s")),
)
_OF_ISOLATED = ("memory_max_mb", "cpu_max_s")


def load(path: Path | None, environ: Mapping[str, str], *, with_keys: bool = True) -> Settings:
    """Read and check the configuration, the keys included unless nobody here needs them.

    path: the file; if None, AGENTD_CONFIG or the usual places, and without any file the defaults, which have no
    identity: the embedded mode. environ: of the process; it also names the state folder (AGENTD_STATE).
    Relative paths in the file start at its folder.
    Raises ConfigError with every problem found. Commands that give keys are run, so this may take some seconds.
    """
    file = path or find_configuration(environ)
    if file is None:
        return _placed(Settings(), None, Path(), environ)
    text = _text(file)
    reading = _Reading(file, KeyLines(text))
    raw = _parsed(file, text)
    settings = reading.section(Settings, raw, ()) or Settings()
    settings = _anchored(settings, file.parent)
    _check_state(settings, reading)
    _check_order(settings, reading)
    _check_http(settings, reading)
    _check_tracing(settings, reading, environ)
    _check_plugins(settings, reading)
    _check_identities(raw, reading)
    _check_encryption(settings, reading)
    if with_keys:
        _check_keys(settings, reading, environ)
        _check_encryption_keys(settings, reading, environ)
        _check_secrets(settings, reading, environ)
    reading.conclude()
    named = raw.get("agentd", {}).get("state")
    return _placed(settings, named, file.parent, environ)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(
            [f"{file}: cannot be read ({error.strerror}); name another file with --config or AGENTD_CONFIG"]
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8"]) from None


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib stops at the first error; it may quote a character, never a value.
        place = _SYNTAX_PLACE.search(str(error))
        what = _SYNTAX_PLACE.sub("", str(error))
        line = f":{place[1]}" if place else ""
        raise ConfigError([f"{file}{line}: not TOML: {what}; mend this line, then check again"]) from None
    except ValueError:
        raise ConfigError([f"{file}: holds a number of thousands of digits; shorten it, then check again"]) from None
    except RecursionError:
        raise ConfigError([f"{file}: is nested too deeply to be read; mend it, then check again"]) from None


class _Reading:
    """One pass over a parsed file, collecting problems."""

    def __init__(self, file: Path, lines: KeyLines) -> None:
        self._file = file
        self._lines = lines
        self._problems: list[tuple[int, str]] = []
        self._broken: set[KeyPath] = set()

    def is_sound(self, path: KeyPath) -> bool:
        """Nothing was noted about this key or below it."""
        return not any(broken[: len(path)] == path for broken in self._broken)

    def problem(self, path: KeyPath, what: str) -> None:
        """Note a problem of the key at `path`. what: the problem and its remedy."""
        self._broken.add(path)
        line = self._lines.of(path)
        place = f"{self._file}:{line}" if line else str(self._file)
        key = ".".join(part if _BARE_KEY.fullmatch(part) else msgspec.json.encode(part).decode() for part in path)
        self._problems.append((line or 0, f"{place}: {key}: {what}" if key else f"{place}: {what}"))

    def conclude(self) -> None:
        """Raise ConfigError if anything was noted, in the order of the file."""
        if self._problems:
            raise ConfigError([text for _, text in sorted(self._problems, key=lambda problem: problem[0])])

    def section(self, kind: type[S], raw: Any, path: KeyPath) -> S | None:
        """The table as a `kind`, its broken keys at their defaults; None if nothing can be made of it."""
        if not isinstance(raw, dict):
            self.problem(path, f"expected a table, found {spelled(raw)}; {_table_remedy(kind, path)}")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for name in raw.keys() - fields.keys():
            self.problem((*path, name), f"unknown key; {_instead(name, fields)}")
        values, complete = {}, True
        for name, field in fields.items():
            if name in raw:
                value = self._value(field.type, raw[name], (*path, name))
                if value is not None:
                    values[name] = value
                    continue
            elif field.required:
                self.problem(path, f"{name} is missing; add {name} = ... ({expected(field.type)})")
            complete = complete and not field.required
        return kind(**values) if complete else None

    def _value(self, kind: Any, raw: Any, path: KeyPath) -> Any:
        if (section := _section_of(kind)) is not None:
            return self.section(section, raw, path)
        if get_origin(kind) is dict and issubclass(get_args(kind)[1], msgspec.Struct):
            return self._named_sections(get_args(kind)[1], raw, path)
        if _holds_nul(raw):
            self.problem(path, 'holds "\\u0000", which no name, path or word of a command may; remove it')
            return None
        try:
            if (isinstance(raw, float) and not math.isfinite(raw)) or (isinstance(raw, int) and raw > _WHOLE_MAX):
                raise msgspec.ValidationError
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError:
            self.problem(path, f"expected {expected(kind)}, found {_shown(raw, path)}{_nearest(raw, kind)}")
            return None

    def _named_sections(self, kind: type[S], raw: Any, path: KeyPath) -> dict[str, S]:
        if not isinstance(raw, dict):
            self.problem(path, f"expected tables, found {spelled(raw)}; write [{path[-1]}.NAME]")
            return {}
        sections = {}
        for name, table in raw.items():
            if not _NAME.fullmatch(name):
                self.problem(
                    (*path, name),
                    "a name has 1 to 64 letters, digits, dots, dashes and underscores; rename it",
                )
            elif section := self.section(kind, table, (*path, name)):
                sections[name] = section
        return sections


def _section_of(kind: Any) -> type[msgspec.Struct] | None:
    """The table that stands here, whether or not it may be left out."""
    choices = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)


def _table_remedy(kind: type[msgspec.Struct], path: KeyPath) -> str:
    if kind is KeySource:
        return 'say where the key lies, not the key itself: key = { file = "alice.key" }'
    return f"write [{'.'.join(path)}]"


def _holds_nul(raw: Any) -> bool:
    """Whether a text, or one of several, cannot be handed to the system."""
    return any(isinstance(each, str) and "\0" in each for each in (raw if isinstance(raw, list) else (raw,)))


def _shown(raw: Any, path: KeyPath) -> str:
    """Numbers and choices are quoted; nothing beside a key is, and nothing long."""
    if (
        {"key", "old_key", "secrets", "headers"}.intersection(path)
        or isinstance(raw, (list, dict))
        or (isinstance(raw, str) and len(raw) > 40)
        or (isinstance(raw, int) and raw > _WHOLE_MAX)
    ):
        return spelled(raw)
    return f"{spelled(raw)} ({raw!r})"


def _nearest(raw: Any, kind: Any) -> str:
    if get_origin(kind) is Literal and isinstance(raw, str):
        return _guess(raw, get_args(kind))
    return ""


def _guess(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _instead(name: str, known: Iterable[str]) -> str:
    choices = sorted(known)
    guess = _guess(name, choices).removeprefix("; ")
    return guess or f"remove it; known here: {', '.join(choices)}"


def _anchored(settings: Settings, folder: Path) -> Settings:
    """The same with every path absolute, starting at the configuration's folder."""
    tracing = settings.agentd.tracing
    headers = {name: _anchored_key(source, folder) for name, source in tracing.headers.items()}
    tracing = msgspec.structs.replace(tracing, headers=headers)
    encryption = settings.agentd.journal.encryption
    encryption = msgspec.structs.replace(
        encryption,
        key=encryption.key and _anchored_key(encryption.key, folder),
        old_key=encryption.old_key and _anchored_key(encryption.old_key, folder),
    )
    journal = msgspec.structs.replace(settings.agentd.journal, encryption=encryption)
    return msgspec.structs.replace(
        settings,
        agentd=msgspec.structs.replace(settings.agentd, tracing=tracing, journal=journal),
        identity={name: _anchored_identity(each, folder) for name, each in settings.identity.items()},
        plugin={name: _anchored_plugin(each, folder) for name, each in settings.plugin.items()},
    )


def _anchored_identity(identity: Identity, folder: Path) -> Identity:
    return msgspec.structs.replace(identity, key=_anchored_key(identity.key, folder))


def _anchored_plugin(plugin: PluginSettings, folder: Path) -> PluginSettings:
    use = str(anchored(plugin.use, folder)) if is_path(plugin.use) else plugin.use
    secrets = {name: _anchored_key(source, folder) for name, source in plugin.secrets.items()}
    return msgspec.structs.replace(plugin, use=use, secrets=secrets)


def _anchored_key(source: KeySource, folder: Path) -> KeySource:
    if source.file is None:
        return source
    return msgspec.structs.replace(source, file=str(anchored(source.file, folder)))


def is_path(use: str) -> bool:
    """Whether a plugin's `use` names a file or folder, and not something that is installed."""
    return "/" in use or use.endswith(".py")


def _placed(settings: Settings, named: str | None, folder: Path, environ: Mapping[str, str]) -> Settings:
    state = str(state_folder(named, folder, environ))
    return msgspec.structs.replace(settings, agentd=msgspec.structs.replace(settings.agentd, state=state))


def _check_state(settings: Settings, reading: _Reading) -> None:
    if is_homeless(settings.agentd.state):
        reading.problem(("agentd", "state"), "begins in a home that is not known here; name the folder from / on")


def _check_order(settings: Settings, reading: _Reading) -> None:
    for (name, low), (_, high) in _RISING:
        section, path = getattr(settings.agentd, name), ("agentd", name)
        lower, upper = getattr(section, low), getattr(section, high)
        if lower > upper and reading.is_sound((*path, low)) and reading.is_sound((*path, high)):
            reading.problem((*path, low), f"{low} ({lower}) is above {high} ({upper}); lower {low} or raise {high}")


def _check_http(settings: Settings, reading: _Reading) -> None:
    http, path = settings.agentd.http, ("agentd", "http", "listen")
    if not http.listen or not reading.is_sound(path):
        return
    try:
        host, _ = listening_address(http.listen)
    except ValueError:
        reading.problem(path, 'is not an address and a port; write it like listen = "127.0.0.1:8788"')
        return
    if not (is_loopback(host) or http.allow_remote):
        reading.problem(
            path, f"{host} can be reached by other machines; listen on 127.0.0.1, or say allow_remote = true as well"
        )


def _check_tracing(settings: Settings, reading: _Reading, environ: Mapping[str, str]) -> None:
    tracing, path = settings.agentd.tracing, ("agentd", "tracing")
    if not tracing.enabled:
        return
    if not _is_installed("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        reading.problem((*path, "enabled"), "OpenTelemetry is not installed; run: pip install 'agentd[otel]'")
    if problem := _collector_problem(collector_of(tracing, environ)):
        reading.problem((*path, "endpoint"), problem)
    for name, source in tracing.headers.items():
        _check_source((*path, "headers", name), source, reading, environ, resolve_header)


def _check_encryption(settings: Settings, reading: _Reading) -> None:
    encryption = settings.agentd.journal.encryption
    if (encryption.key or encryption.old_key) and not _is_installed("cryptography"):
        path = ("agentd", "journal", "encryption")
        reading.problem(path, "cryptography is not installed; run: pip install 'agentd[encryption]'")


def _is_installed(*modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:  # what they lie in is not
        return False


def _collector_problem(url: str) -> str | None:
    return _url_problem(url, f"write it like {COLLECTOR}") or _plain_text_problem(url, "traces")


def _plain_text_problem(url: str, what: str) -> str | None:
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        return f"http:// would show {what} to the network on the way to {parts.hostname}; use https://"
    return None


def _check_plugins(settings: Settings, reading: _Reading) -> None:
    for name, plugin in settings.plugin.items():
        if not plugin.use.strip():
            reading.problem(("plugin", name, "use"), 'is empty; name "./file.py", "module:attribute" or an entry point')
        elif is_path(plugin.use) and (why := _unseen(Path(plugin.use))):
            reading.problem(("plugin", name, "use"), f"{why}; mend the path")
        for key in _OF_ISOLATED if plugin.isolate == "none" else ():
            if getattr(plugin, key) is not None:
                remedy = f'add isolate = "process", or remove {key}'
                reading.problem(("plugin", name, key), f"limits a process, which this plugin does not have; {remedy}")


def _unseen(file: Path) -> str:
    """Why nothing is to be found there, or ""."""
    try:
        return "" if file.exists() else f"there is no file {file}"
    except OSError as error:
        return f"{file} cannot be looked at ({error.strerror})"


def _check_identities(raw: Mapping[str, Any], reading: _Reading) -> None:
    """What can be said about each identity even if another of its keys is broken."""
    defined = list(_table(raw, "plugin"))
    for name, table in _table(raw, "identity").items():
        path = ("identity", name)
        match table:
            case {"platform": str(platform)} if platform not in PLATFORMS:
                reading.problem((*path, "platform"), f"unknown platform; {_instead(platform, PLATFORMS)}")
        match table:
            case {"url": str(url)} if problem := _base_problem(url):
                reading.problem((*path, "url"), problem)
        match table:
            case {"plugins": list(listed)} if reading.is_sound((*path, "plugins")):
                _check_listed(listed, defined, (*path, "plugins"), reading)


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = raw.get(name)
    return table if isinstance(table, dict) else {}


def _check_listed(listed: list[str], defined: list[str], path: KeyPath, reading: _Reading) -> None:
    if not listed:
        reading.problem(path, "names no plugin; name one, or leave the key out for an identity that only sends")
    for name in dict.fromkeys(listed):
        if listed.count(name) > 1:
            reading.problem(path, f'names "{name}" more than once; name it once')
        if name not in defined:
            guess = _guess(name, defined) or f"; add [plugin.{name}] with use = ..."
            reading.problem(path, f'there is no plugin "{name}"{guess}')


def _base_problem(url: str) -> str | None:
    if problem := _url_problem(url) or _plain_text_problem(url, "the key"):
        return problem
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        return f'ends in "/v1", which agentd adds by itself; write {url.rstrip("/").removesuffix("/v1")}'
    return None


def _url_problem(url: str, remedy: str = "write it like https://api.agentchat.me") -> str | None:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        return f"is not an address; {remedy}"
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Said first and without quoting: this is where somebody has put a key.
        return f"has a user, a query or a fragment, where a key would show; {remedy}"
    if any(char.isspace() or not char.isprintable() for char in url):
        return f"has white space or special characters within; {remedy}"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        return f"is not an http or https address; {remedy}"
    return None


def _check_keys(settings: Settings, reading: _Reading, environ: Mapping[str, str]) -> None:
    owners: dict[Secret, str] = {}
    for name, identity in settings.identity.items():
        path = ("identity", name, "key")
        if not reading.is_sound(path):
            continue
        if problem := _source_problem(identity.key):
            reading.problem(path, problem)
            continue
        try:
            key = resolve_key(identity.key, environ)
        except ConfigError as error:
            for what in error.problems:
                reading.problem(path, what)
            continue
        first = owners.setdefault(key, name)
        if first != name:
            reading.problem(
                path, f"is the same key as that of identity {first}; give each its own, or remove one of the two"
            )


def _check_encryption_keys(settings: Settings, reading: _Reading, environ: Mapping[str, str]) -> None:
    encryption = settings.agentd.journal.encryption
    for name, source in (("key", encryption.key), ("old_key", encryption.old_key)):
        if source is not None:
            path = ("agentd", "journal", "encryption", name)
            _check_source(path, source, reading, environ, resolve_encryption_key)


def _check_secrets(settings: Settings, reading: _Reading, environ: Mapping[str, str]) -> None:
    for name, plugin in settings.plugin.items():
        for secret, source in plugin.secrets.items():
            _check_source(("plugin", name, "secrets", secret), source, reading, environ, resolve_key)


def _check_source(
    path: KeyPath,
    source: KeySource,
    reading: _Reading,
    environ: Mapping[str, str],
    resolve: Callable[[KeySource, Mapping[str, str]], object],
) -> None:
    if not reading.is_sound(path):
        return
    if problem := _source_problem(source):
        reading.problem(path, problem)
        return
    try:
        resolve(source, environ)
    except ConfigError as error:
        for what in error.problems:
            reading.problem(path, what)


def _source_problem(source: KeySource) -> str | None:
    named = [name for name in KeySource.__struct_fields__ if getattr(source, name) is not None]
    if not named:
        return f'names no source; write one of {", ".join(KeySource.__struct_fields__)}: key = {{ file = "alice.key" }}'
    if len(named) > 1:
        return f"names {' and '.join(named)}; keep one of them"
    if isinstance(source.command, str):
        try:
            shlex.split(source.command)
        except ValueError:
            return "the command has an open quote; close it, or write the command as an array of words"
    return None
