"""The journal on SQLite. Everything that knows SQLite is in this folder."""

from agentd.journal.sqlite.database import SqliteJournal, open_journal
from agentd.journal.sqlite.opening import SCHEMA

__all__ = ["SCHEMA", "SqliteJournal", "open_journal"]
