"""The journal on SQLite. Everything that knows SQLite is in this folder."""

from agentd.journal.sqlite.database import SqliteJournal, open_journal

__all__ = ["SqliteJournal", "open_journal"]
