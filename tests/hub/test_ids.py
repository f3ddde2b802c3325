"""Ids lead back to their numbers and tell nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.hub.ids import Ids


@given(st.integers(min_value=0, max_value=2**63))
def test_an_id_leads_back_to_its_number(number: int) -> None:
    ids = Ids("msg_", "0123abcd")
    assert ids.number_of(ids.make(number)) == number


def test_ids_do_not_rise_with_their_numbers() -> None:
    ids = [Ids("del_", "0123abcd").make(number) for number in range(1, 50)]
    assert len(set(ids)) == 49
    assert ids != sorted(ids)


@pytest.mark.parametrize("other", ["", "msg_", "msg_ffffffff" + "0" * 16, "msg_0123abcd" + "z" * 16, "del_0123abcd"])
def test_an_id_of_another_hub_or_kind_has_no_number(other: str) -> None:
    assert Ids("msg_", "0123abcd").number_of(other) is None
