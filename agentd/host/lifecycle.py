"""A plugin from its file to its end: imported, checked against its settings, set up, torn down.

Always true: a plugin from a file or folder gets modules of its own at every load, so that two of them, or two
generations of one, share nothing, and they are made of what the files hold at that moment. An installed one is imported
by its ordinary name: its own submodules import it by that name, and a second copy would split it. What cannot run is
refused with file, line or key, and with the remedy.
Not here: which plugins there are (the configuration), when they run (the dispatcher).
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import logging
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec

from agentd.config import PluginSettings, Secret, expected, resolve_key, spelled
from agentd.core.events import Digest, Send, Sent, Timer
from agentd.errors import ConfigError, PluginLoadError
from agentd.host.api import Port, no_api
from agentd.host.context import plugin_log
from agentd.host.discovery import Found, FoundFile, find
from agentd.host.handlers import Handlers, check_hooks, code_of, is_async, place_of
from agentd.host.state import PluginState, Read
from agentd.host.threads import Threads
from agentd.host.turns import Turns
from agentd.plugin import Log, Plugin

log = logging.getLogger("agentd.host.lifecycle")

_ALIAS = "agentd_plugin_"
_generation = itertools.count(1)


class Loaded:
    """A plugin that can run. name: as in the configuration, which is what its cursors and state are kept under.

    up: calls may begin, which for a plugin in this process is always so; on_up would tell of it. in_process: its code
    runs in this process, and may end it.
    alias: the module name that it was given, if it came from a file; forgotten at teardown. serves: names of the
    identities that have it among their plugins; the dispatcher says which. backlog_of: what a recipient (identity,
    target) had not taken yet, or None; the daemon knows. api_of: who makes the calls of `ctx.api` for an identity.
    Raises PluginLoadError for wrong declarations, ConfigError for settings that do not fit.
    """

    loop: asyncio.AbstractEventLoop
    send_now: Callable[[Send], Awaitable[Sent]]
    serves: frozenset[str] = frozenset()
    up = True
    in_process = True

    def __init__(
        self,
        name: str,
        plugin: Plugin[Any],
        settings: PluginSettings,
        version: str,
        read: Read,
        alias: str = "",
        secrets: Mapping[str, Secret] | None = None,
    ) -> None:
        check_hooks(name, plugin)
        self.name = name
        self.plugin = plugin
        self.settings = settings
        self.version = plugin.version or version
        self.handlers = Handlers(name, plugin.declared)
        self.config = fitted(name, plugin.config, settings.config)
        self.state = PluginState(name, read, settings.state_value_max_bytes, settings.state_max_mb << 20)
        self.timers = 0
        self.timers_max = settings.timers_max
        self.watches = plugin.watches
        self.takes_digests = any(each.event is Digest for each in self.handlers.all)
        self.minds_timers = any(each.event is Timer and each.every_s is None for each in self.handlers.all)
        self.backlog_of: Callable[[str, str], int | None] = _no_backlog
        self.api_of: Callable[[str], Port | None] = no_api
        self.on_up: Callable[[], None] = _nothing
        self._alias = alias
        self._secrets = dict(secrets or {})
        self._threads = Threads(f"agentd-{name}", settings.concurrency)
        self.turns = Turns(
            self.handlers, self._threads, tuple(plugin.middlewares), settings.timeout_s, settings.timeout_max_s
        )

    @property
    def log(self) -> Log:
        """The plugin's log."""
        return plugin_log(self.name)

    def secret(self, name: str) -> str:
        """See agentd.plugin.PluginContext."""
        if name not in self._secrets:
            raise LookupError(
                f"there is no secret {name!r}; write [plugin.{self.name}.secrets] with {name} = {{ file = ... }}"
            )
        return self._secrets[name].reveal()

    async def setup(self) -> None:
        """Run its setups. Raises PluginLoadError if one fails or takes longer than a handler may."""
        self.loop = asyncio.get_running_loop()
        for hook in self.plugin.setups:
            try:
                await self._call(hook)
            except (Exception, SystemExit) as error:
                reason = str(error) or type(error).__name__
                place = _raised_at(error, place_of(hook).rpartition(":")[0])
                raise PluginLoadError(f"{place}: plugin {self.name}: its setup failed: {reason}") from error

    async def teardown(self) -> None:
        """Run its teardowns, the last declared first. What fails is logged."""
        for hook in reversed(self.plugin.teardowns):
            try:
                await self._call(hook)
            except (Exception, SystemExit):
                log.exception("teardown failed", extra={"plugin": self.name})
        self.forget()

    def forget(self) -> None:
        """Let go of its threads and modules; all that is to be done for one that was never set up."""
        self._threads.close()
        _forget(self._alias)

    def codes(self) -> Iterable[tuple[CodeType, str]]:
        """Its code with what to call it, for whoever finds it on a stack."""
        for handler in self.handlers.all:
            yield from _named(handler.function, f"plugin {self.name}, handler {handler.name}")
            for filter_ in handler.filters:
                if filter_.name == "where":
                    yield from _named(filter_.passes, f"plugin {self.name}, the filter of {handler.name}")
        hooks: list[Callable[..., Any]] = [*self.plugin.middlewares, *self.plugin.setups, *self.plugin.teardowns]
        for hook in hooks:
            yield from _named(hook, f"plugin {self.name}, {getattr(hook, '__qualname__', 'a hook')}")

    async def _call(self, hook: Callable[[Any], Any]) -> None:
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                if is_async(hook):
                    await hook(self)
                else:
                    await self._threads.submit(hook, self)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Else it would pass for a cancellation of whoever waits for the hook, and end that.
            told = RuntimeError("it awaited what was cancelled; suppress asyncio.CancelledError there")
            raise told.with_traceback(cancelled.__traceback__) from None


def _nothing() -> None:
    """For nobody to call."""


def _no_backlog(identity: str, target: str) -> int | None:
    return None


def load(
    name: str, settings: PluginSettings, base: Path, read: Read, secrets: Mapping[str, Secret] | None = None
) -> Loaded:
    """Find a plugin, import it and check it. base: the folder that relative paths start from. read: `state_get`.

    secrets: its secrets; read here if None. Raises PluginLoadError or ConfigError.
    """
    found = find(settings.use, base)
    alias = re.sub(r"\W", "_", f"{_ALIAS}{name}_{next(_generation)}")
    try:
        module = _imported(name, found, alias)
        plugin = getattr(module, found.attribute, None)
        if not isinstance(plugin, Plugin):
            raise PluginLoadError(
                f"{module.__file__}: plugin {name}: there is no Plugin named {found.attribute}; "
                f'write `{found.attribute} = Plugin("{name}")`'
            )
        return Loaded(
            name,
            plugin,
            settings,
            found.version,
            read,
            alias,
            secrets_of(name, settings) if secrets is None else secrets,
        )
    except BaseException:
        _forget(alias)
        raise


def secrets_of(name: str, settings: PluginSettings) -> dict[str, Secret]:
    """The plugin's secrets as they are now. Raises ConfigError with every problem."""
    found, problems = {}, []
    for each, source in settings.secrets.items():
        try:
            found[each] = resolve_key(source)
        except ConfigError as error:
            problems += [f"plugin.{name}.secrets.{each}: {what}" for what in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def fitted(name: str, shape: type[Any] | None, given: Mapping[str, Any]) -> Any:
    """The plugin's settings as its Struct, or None if it has none. Raises ConfigError with every problem."""
    if shape is None:
        if given:
            raise ConfigError([f"plugin.{name}.config: this plugin takes no settings; remove {', '.join(given)}"])
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    problems = [_unknown(name, key, fields) for key in given if key not in fields]
    for key, field in fields.items():
        if key not in given:
            if field.required:
                problems.append(f"plugin.{name}.config.{key}: is missing; add {key} = ... ({expected(field.type)})")
            continue
        try:
            msgspec.convert(given[key], field.type)
        except msgspec.ValidationError as error:
            problems.append(f"plugin.{name}.config.{key}: {_misfit(given[key], field.type, error)}")
    if not problems:
        try:
            return msgspec.convert(given, shape)
        except msgspec.ValidationError as error:  # what only the Struct as a whole can tell
            problems.append(f"plugin.{name}.config: {error}")
    raise ConfigError(problems)


def _unknown(name: str, key: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, fields, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields) or 'none'}"
    return f"plugin.{name}.config.{key}: no such setting; {remedy}"


def _misfit(raw: Any, kind: Any, error: msgspec.ValidationError) -> str:
    """What is wrong with a value: of another kind, or, in msgspec's words, out of bounds or wrong further inside."""
    wanted, found = expected(kind), spelled(raw)
    if re.fullmatch(r"Expected `[^`]+`, got `[^`]+`", str(error)) and wanted != found:
        return f"expected {wanted}, found {found}"
    return str(error)


def _imported(name: str, found: Found, alias: str) -> ModuleType:
    try:
        if isinstance(found, FoundFile):
            return _run_file(found, alias)
        return importlib.import_module(found.module)
    except PluginLoadError:
        raise
    except SyntaxError as error:
        raise PluginLoadError(f"{error.filename}:{error.lineno}: plugin {name}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # a plugin does not end the daemon
        place = _raised_at(error, str(found.path) if isinstance(found, FoundFile) else "")
        reason = f"{type(error).__name__}: {error}"
        raise PluginLoadError(f"{place}: plugin {name}: importing it failed: {reason}") from error


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles what the file holds now. A cache of bytecode does not tell two versions of one size and second apart."""

    def get_code(self, fullname: str) -> CodeType:
        """The module's code."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


class _Submodules(importlib.abc.MetaPathFinder):
    """Finds the submodules of plugins that are folders, which are compiled the same way."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib."""
        for folder in path or () if fullname.startswith(_ALIAS) else ():
            finder = importlib.machinery.FileFinder(folder, (_Source, importlib.machinery.SOURCE_SUFFIXES))
            spec = finder.find_spec(fullname)
            if spec is not None and spec.loader is not None:
                return spec
        return None


_submodules = _Submodules()


def _run_file(found: FoundFile, alias: str) -> ModuleType:
    if _submodules not in sys.meta_path:
        sys.meta_path.insert(0, _submodules)
    spec = importlib.util.spec_from_file_location(
        alias,
        found.path,
        loader=_Source(alias, str(found.path)),
        submodule_search_locations=[str(found.folder)] if found.folder else None,
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and relative imports look their module up here.
    sys.modules[alias] = module
    spec.loader.exec_module(module)
    return module


def _forget(alias: str) -> None:
    for name in [each for each in sys.modules if alias and (each == alias or each.startswith(f"{alias}."))]:
        del sys.modules[name]


def _raised_at(error: BaseException, file: str) -> str:
    """Where in the plugin's own file it happened; if it has no part in it, the innermost line of all."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith("<frozen")]
    frames = [each for each in frames if each.filename == file] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else file


def _named(function: Callable[..., Any], name: str) -> Iterable[tuple[CodeType, str]]:
    code = code_of(function)
    if code is not None:
        yield code, name
