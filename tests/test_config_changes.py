"""What differs between two configurations, by what it takes to get from the one to the other."""

from __future__ import annotations

from typing import Any

import msgspec

from agentd import config


def of(**identities: config.Identity) -> config.Settings:
    used = {name: config.PluginSettings(use=name) for each in identities.values() for name in each.plugins}
    return config.Settings(identity=identities, plugin=used)


def identity(*plugins: str, key: str = "KEY", url: str = "https://x", **given: Any) -> config.Identity:
    return config.Identity(url=url, key=config.KeySource(env=key), plugins=plugins, **given)


def named(changes: config.Changes) -> dict[str, tuple[str, ...]]:
    return {name: names for name, names in msgspec.structs.asdict(changes).items() if names}


def test_equal_settings_differ_in_nothing() -> None:
    assert named(config.changes(of(a=identity("p")), of(a=identity("p")))) == {}


def test_each_difference_is_named_by_what_it_takes() -> None:
    now = of(a=identity("p"), b=identity("p"), c=identity("q"), d=identity("p"), e=identity())
    then = of(b=identity("p", key="K2"), c=identity("r"), d=identity("p", url="https://y"), f=identity("p"))
    then = msgspec.structs.replace(then, plugin={**then.plugin, "p": config.PluginSettings(use="p", attempts=2)})
    assert named(config.changes(now, then)) == {
        "added": ("f",),
        "removed": ("a", "e"),
        "moved": ("d",),
        "rekeyed": ("b",),
        "carried": ("c",),
        "plugins_added": ("r",),
        "plugins_removed": ("q",),
        "plugins_changed": ("p",),
    }


def test_what_cannot_change_while_the_daemon_runs_is_named_by_its_key_and_left() -> None:
    now = config.Settings()
    sending = config.Sending(rate_per_s=1.0)
    then = config.Settings(agentd=config.Agentd(state="/x", log_level="debug", sending=sending))
    assert named(config.changes(now, then)) == {"at_next_start": ("agentd.state", "agentd.sending.rate_per_s")}
    assert config.attainable(now, then).agentd == config.Agentd(log_level="debug")


def test_another_conduct_is_carried_and_an_unlisted_plugin_is_nobodys_change() -> None:
    now, then = of(a=identity("p")), of(a=identity("p", takeover_idle_s=1.0))
    assert named(config.changes(now, then)) == {"carried": ("a",)}
    unlisted = msgspec.structs.replace(now, plugin={**now.plugin, "q": config.PluginSettings(use="q")})
    assert named(config.changes(now, unlisted)) == {}
