"""Killed at every point between the socket, the handler, the disk and the platform: nothing missing, nothing twice.

points.py names them all; a point that the daemon never reaches fails its test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.points import POINTS
from tests.crash.rig import Books


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_point_loses_no_effect_and_repeats_none(tmp_path: Path, point: str) -> None:
    async with Books(tmp_path) as books:
        # The first time that it gets there, with live messages; and later, over mail that came while it was down.
        # In between everything is answered: an event during which the process died twice is quarantined, rightly.
        books.start_to_die_at(point, 1)
        await books.until_started()
        await books.until_dead_at(point)
        books.start()
        await books.settle()
        await books.kill()
        books.say_everything()
        books.start_to_die_at(point, 3)
        await books.until_dead_at(point)
        books.start()
        await books.settle()
        await books.close_the_books()
