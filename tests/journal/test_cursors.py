"""Lanes through a real file: cursors, and the attempts that they clear."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Attempt, Carried, Conversation, CursorMoved


def conversations(count):
    return [Conversation(number, "alice", f"conv_{number}", 1, 1, 1, "", 1, 0) for number in range(1, count + 1)]


def failed(position, conversation=1, plugin="echo", count=1):
    return Attempt(plugin, conversation, position, count, "ValueError", 2.5)


async def test_a_plugin_has_its_own_cursors(journal):
    await journal.commit(*conversations(2), CursorMoved("echo", 1, 3), CursorMoved("log", 1, 9))
    await journal.commit(CursorMoved("echo", 2, 4), CursorMoved("echo", 1, 5))
    assert await journal.cursors("echo") == {1: 5, 2: 4}
    assert await journal.cursors("log") == {1: 9}
    assert await journal.cursors("unheard of") == {}


async def test_a_cursor_may_move_back(journal):
    await journal.commit(*conversations(1), CursorMoved("echo", 1, 9))
    await journal.commit(CursorMoved("echo", 1, 2))
    assert await journal.cursors("echo") == {1: 2}


async def test_a_failed_event_is_renewed_by_its_next_failure(journal):
    await journal.commit(*conversations(1), failed(4))
    await journal.commit(failed(4, count=2))
    assert await journal.attempts("echo") == [failed(4, count=2)]
    assert await journal.attempts("log") == []


async def test_a_cursor_clears_the_attempts_that_it_passes_and_no_others(journal):
    await journal.commit(*conversations(2), failed(4), failed(5), failed(6), failed(4, 2), failed(4, plugin="log"))
    await journal.commit(CursorMoved("echo", 1, 5))
    assert await journal.attempts("echo") == [failed(6), failed(4, 2)]
    assert await journal.attempts("log") == [failed(4, plugin="log")]


async def test_attempts_are_cleared_after_a_restart_too(journal, path, settings):
    await journal.commit(*conversations(1), failed(4))
    await journal.close()
    reopened = await open_journal(path, settings)
    await reopened.commit(CursorMoved("echo", 1, 4))
    assert await reopened.attempts("echo") == []
    await reopened.close()


async def test_attempts_are_cleared_after_the_commit_that_should_have_done_it_failed(journal):
    await journal.commit(*conversations(1), failed(4))
    with pytest.raises(JournalError, match="outbox"):
        await journal.commit(CursorMoved("echo", 1, 4), Carried("never queued", "alice", "sent", 1))
    assert await journal.attempts("echo") == [failed(4)]
    await journal.commit(CursorMoved("echo", 1, 4))
    assert await journal.attempts("echo") == []


LANE_CHANGES = st.lists(
    st.one_of(
        st.builds(CursorMoved, st.just("echo"), st.integers(1, 2), st.integers(1, 6)),
        st.builds(failed, st.integers(1, 6), st.integers(1, 2)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(LANE_CHANGES, max_size=4))
async def test_a_group_leaves_what_its_changes_would_leave_one_by_one(tmp_path_factory, settings, groups):
    journal = await open_journal(tmp_path_factory.mktemp("lanes") / "journal.db", settings)
    try:
        await journal.commit(*conversations(2))
        cursors, attempts = {}, {}
        for group in groups:
            for change in group:
                if isinstance(change, CursorMoved):
                    lane, position = change.conversation, change.position
                    cursors[lane] = position
                    attempts = {key: row for key, row in attempts.items() if key[0] != lane or key[1] > position}
                else:
                    attempts[change.conversation, change.position] = change
            await journal.commit(*group)
        assert await journal.cursors("echo") == cursors
        assert await journal.attempts("echo") == [attempts[key] for key in sorted(attempts)]
    finally:
        await journal.close()
