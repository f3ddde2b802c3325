"""queries.sql as a whole: found, explained, valid, and never a walk over the log where an index should serve."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest

import agentd.journal.sqlite as sqlite_journal
from agentd.journal.sqlite.opening import SCHEMA
from agentd.journal.sqlite.statements import SQL, parse, widened, write_rows

FOLDER = Path(sqlite_journal.__file__).parent


@pytest.fixture
def database():
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SCHEMA.create)
        yield connection


def plan(database, name):
    statement = SQL[name]
    numbered = re.findall(r"\?(\d)", statement)
    count = max(map(int, numbered)) if numbered else statement.count("?")
    return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * count)]


@pytest.mark.parametrize("name", SQL)
def test_every_statement_fits_the_schema(database, name):
    plan(database, name)


@pytest.mark.parametrize("name", SQL)
def test_every_statement_is_used(name):
    code = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    table, _, verb = name.partition("_")
    by_table = verb in ("add", "find", "numbers") and table in ("identity", "plugin")
    assert f'"{name}"' in code or by_table


@pytest.mark.parametrize("name", SQL)
def test_no_statement_walks_over_the_whole_log(database, name):
    walks = [step for step in plan(database, name) if re.match(r"SCAN (event|e|l)\b", step)]
    assert walks == []


def test_a_lane_is_read_in_order_without_sorting(database):
    assert not any("TEMP B-TREE" in step for step in plan(database, "event_lane"))


def test_a_statement_that_does_not_say_what_it_is_for_is_refused():
    with pytest.raises(ValueError, match="one does not say"):
        parse("-- name: one\nSELECT 1;\n")


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="taken"):
        parse("-- name: one\n-- Why.\nSELECT 1;\n-- name: one\n-- Why.\nSELECT 2;\n")


def test_widening_repeats_the_row_and_nothing_else():
    statement = "INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET b = excluded.b"
    assert widened(statement, 3) == statement.replace("(?, ?)", "(?, ?), (?, ?), (?, ?)")


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 255, 256, 257, 600])
def test_any_number_of_rows_is_written_in_order(database, count):
    database.execute("CREATE TABLE t (a INTEGER, b INTEGER)")
    rows = [(number, number * 2) for number in range(count)]
    write_rows(database, "INSERT INTO t (a, b) VALUES (?, ?)", rows)
    assert database.execute("SELECT a, b FROM t ORDER BY rowid").fetchall() == rows
