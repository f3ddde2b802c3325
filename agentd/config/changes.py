"""What differs between the settings that run and those that are wanted, by what it takes to get there.

Always true: nothing that is equal in both is named.
Not here: doing it (agentd.reloading), and what only a look elsewhere can tell: that a key file holds another key.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agentd.config.settings import Agentd, Conduct, Identity, Settings

_AT_ONCE = ("log_level",)
"""Of [agentd]: what can change while it runs."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Names of identities and plugins, in the order of the wanted settings.

    moved: at another place or platform, so that the identity stops and starts. rekeyed: the key comes from elsewhere.
    carried: other plugins, or another conduct. Plugins count while an identity lists them. at_next_start: settings that
    cannot change while the daemon runs.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[str, ...]
    rekeyed: tuple[str, ...]
    carried: tuple[str, ...]
    plugins_added: tuple[str, ...]
    plugins_removed: tuple[str, ...]
    plugins_changed: tuple[str, ...]
    at_next_start: tuple[str, ...]


def changes(running: Settings, wanted: Settings) -> Changes:
    """What it takes to get from the one to the other."""
    now, then = running.identity, wanted.identity
    both = [name for name in then if name in now]
    moved = [name for name in both if _place(now[name]) != _place(then[name])]
    stay = [name for name in both if name not in moved]
    used, wanted_plugins = used_plugins(running), used_plugins(wanted)
    kept = [name for name in wanted_plugins if name in used]
    return Changes(
        added=tuple(name for name in then if name not in now),
        removed=tuple(name for name in now if name not in then),
        moved=tuple(moved),
        rekeyed=tuple(name for name in stay if now[name].key != then[name].key),
        carried=tuple(name for name in both if _manner(now[name]) != _manner(then[name])),
        plugins_added=tuple(name for name in wanted_plugins if name not in used),
        plugins_removed=tuple(name for name in used if name not in wanted_plugins),
        plugins_changed=tuple(name for name in kept if running.plugin[name] != wanted.plugin[name]),
        at_next_start=tuple(_differing(running.agentd, wanted.agentd, "agentd")),
    )


def attainable(running: Settings, wanted: Settings) -> Settings:
    """The wanted settings as far as they can be had without a new start."""
    at_once = {name: getattr(wanted.agentd, name) for name in _AT_ONCE}
    return msgspec.structs.replace(wanted, agentd=msgspec.structs.replace(running.agentd, **at_once))


def used_plugins(settings: Settings) -> list[str]:
    """The plugins that some identity lists."""
    return list(dict.fromkeys(name for identity in settings.identity.values() for name in identity.plugins))


def _place(identity: Identity) -> tuple[str, str]:
    return identity.platform, identity.url


def _manner(identity: Identity) -> tuple[object, ...]:
    return (*(getattr(identity, name) for name in Conduct.__struct_fields__), identity.plugins)


def _differing(running: msgspec.Struct, wanted: msgspec.Struct, path: str) -> Iterator[str]:
    for name in running.__struct_fields__:
        one, other = getattr(running, name), getattr(wanted, name)
        if one == other or (isinstance(running, Agentd) and name in _AT_ONCE):
            continue
        if isinstance(one, msgspec.Struct) and type(one) is type(other):
            yield from _differing(one, other, f"{path}.{name}")
        else:
            yield f"{path}.{name}"
