"""The configuration: TOML into one frozen tree of settings, every problem told at once.

    search.py     which file, which state folder
    lines.py      where in the text a key stands
    loader.py     text into settings, or every problem found
    collector.py  where traces go
    changes.py    what differs between the settings that run and those that are wanted
    listening.py  what [agentd.http] listen says
    spelling.py   what a setting has to be, in words
    keys.py       the keys of identities, kept out of everything that is printed
    settings.py   the tree itself, with units in the names and a reason beside each default

Always true: what `load` returns can be used; paths in it are absolute.
Not here: what only a server can tell, such as two keys of one account, or a key that it refuses.
"""

from agentd.config.changes import Changes, attainable, changes, used_plugins
from agentd.config.collector import collector_of
from agentd.config.keys import Secret, resolve_encryption_key, resolve_header, resolve_key
from agentd.config.listening import listening_address
from agentd.config.loader import is_path, load
from agentd.config.search import (
    SERVICE_STATE,
    find_configuration,
    find_state,
    is_kept_for_the_service,
    looking_at_the_service,
)
from agentd.config.settings import (
    Agentd,
    CatchUp,
    Conduct,
    Control,
    Dispatch,
    Encryption,
    Health,
    Http,
    Identity,
    Intake,
    JournalSettings,
    KeySource,
    Link,
    LoopGuard,
    PluginSettings,
    Rest,
    Retention,
    Sending,
    Settings,
    Tracing,
)
from agentd.config.spelling import expected, spelled

__all__ = [
    "SERVICE_STATE",
    "Agentd",
    "CatchUp",
    "Changes",
    "Conduct",
    "Control",
    "Dispatch",
    "Encryption",
    "Health",
    "Http",
    "Identity",
    "Intake",
    "JournalSettings",
    "KeySource",
    "Link",
    "LoopGuard",
    "PluginSettings",
    "Rest",
    "Retention",
    "Secret",
    "Sending",
    "Settings",
    "Tracing",
    "attainable",
    "changes",
    "collector_of",
    "expected",
    "find_configuration",
    "find_state",
    "is_kept_for_the_service",
    "is_path",
    "listening_address",
    "load",
    "looking_at_the_service",
    "resolve_encryption_key",
    "resolve_header",
    "resolve_key",
    "spelled",
    "used_plugins",
]
