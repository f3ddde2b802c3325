"""How far a drain may be acknowledged: a cumulative cursor over rows that reach the disk in any order.

Always true: the cursor stands behind a row only if that row and all before it are on disk.
"""

from __future__ import annotations

from collections import deque

Place = tuple[str, int]
"""(conversation, seq)"""


class DrainCursor:
    """The rows of one drain in the server's order, and which of them are settled.

    Feed rows with `row` as they are read and `settle` as they reach the disk; `take` gives the cursor to acknowledge.
    A row that was on disk before it was read is settled like any other. Memory: the rows not yet passed.
    """

    def __init__(self) -> None:
        self._rows: deque[tuple[Place, str | None]] = deque()
        self._open: dict[Place, bool] = {}
        self._cursor: str | None = None

    def __bool__(self) -> bool:
        return bool(self._rows)

    def row(self, place: Place, delivery_id: str | None) -> None:
        """The next row. `delivery_id`: the server's name for the position behind it; None cannot be acknowledged."""
        self._rows.append((place, delivery_id))
        self._open.setdefault(place, False)

    def settle(self, place: Place) -> None:
        """This event is on disk (or was). Places that are not rows of this drain are passed over."""
        if place in self._open:
            self._open[place] = True

    def take(self) -> str | None:
        """The furthest cursor that became safe since the last call, or None."""
        while self._rows and self._open.get(self._rows[0][0], True):
            place, delivery_id = self._rows.popleft()
            self._open.pop(place, None)
            self._cursor = delivery_id or self._cursor
        cursor, self._cursor = self._cursor, None
        return cursor
