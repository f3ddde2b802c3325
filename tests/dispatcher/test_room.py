"""Turns that wait for room in an outbox."""

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.events import Content, Send
from agentd.dispatcher.room import Room


def sends(*identities: str) -> list[Send]:
    return [Send(identity=each, target="@bob", content=Content(text="x"), client_msg_id="k") for each in identities]


def test_a_turn_waits_only_for_the_outboxes_that_it_sends_to() -> None:
    free = Counter({"alice": 0, "bob": 1})
    room: Room[str] = Room(free.__getitem__)
    assert not room.admit("to alice", sends("alice"))
    assert not room.admit("to both", sends("bob", "alice"))
    assert room.admit("to bob", sends("bob"))
    assert len(room) == 2
    assert room.pop() is None
    free["alice"] = 1
    assert room.pop() == "to alice"


def test_turns_are_let_go_in_their_order_one_for_each_place() -> None:
    free = Counter({"alice": 0})
    room: Room[int] = Room(free.__getitem__)
    for turn in range(3):
        room.admit(turn, sends("alice"))
    free["alice"] = 2
    assert [room.pop(), room.pop(), room.pop()] == [0, 1, None]
    room.committed(sends("alice"))
    free["alice"] = 1
    assert room.pop() is None, "the other commit is still under way"
    room.committed(sends("alice"))
    assert room.pop() == 2
    assert len(room) == 0


STEP = st.sampled_from(["turn", "on disk", "sent"])


@given(st.integers(1, 5), st.lists(st.tuples(STEP, st.integers(1, 3)), max_size=80))
def test_an_outbox_is_exceeded_by_one_turn_at_most_and_every_turn_goes_in_its_order(
    most: int, steps: list[tuple[str, int]]
) -> None:
    outbox, handed_in, let_go = 0, 0, []
    room: Room[tuple[int, int]] = Room(lambda identity: most - outbox)
    committing: deque[tuple[int, int]] = deque()

    def begin(turn: tuple[int, int]) -> None:
        let_go.append(turn[0])
        committing.append(turn)

    for step, count in steps:
        if step == "turn":
            turn = (handed_in, count)
            handed_in += 1
            if room.admit(turn, sends(*["alice"] * count)):
                begin(turn)
        elif step == "on disk" and committing:
            _, size = committing.popleft()
            outbox += size
            room.committed(sends(*["alice"] * size))
        elif step == "sent":
            outbox = max(0, outbox - count)
        while (waiting := room.pop()) is not None:
            begin(waiting)
        assert outbox + sum(size for _, size in committing) <= most + 2, "three sends of the turn that filled it"
    outbox = 0
    while committing or len(room):
        if committing:
            room.committed(sends(*["alice"] * committing.popleft()[1]))
        while (waiting := room.pop()) is not None:
            begin(waiting)
    assert let_go == list(range(handed_in))


def test_when_the_process_hands_over_every_waiting_turn_goes_in_its_order() -> None:
    room: Room[str] = Room(lambda identity: 0)
    assert not room.admit("first", sends("alice"))
    assert not room.admit("second", sends("bob"))
    assert room.let_all_go() == ["first", "second"]
    assert len(room) == 0
