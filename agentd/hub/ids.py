"""Ids that the hub gives out, and back again.

An id is its table's number behind the database's tag. The number is scrambled, so that a client which sorts or
compares ids, which the contract forbids, is wrong at once instead of right by chance.

Always true: `number_of(make(n)) == n`, and an id of another hub or kind has no number here.
"""

from __future__ import annotations

_BITS = 64
_MASK = (1 << _BITS) - 1
_FACTOR = 0x9E37_79B9_7F4A_7C15  # odd, therefore invertible modulo 2**64
_INVERSE = pow(_FACTOR, -1, 1 << _BITS)
_HEX_DIGITS = _BITS // 4


class Ids:
    """Ids of one kind: `prefix`, the tag, sixteen hex digits."""

    __slots__ = ("_lead",)

    def __init__(self, prefix: str, tag: str) -> None:
        self._lead = prefix + tag

    def make(self, number: int) -> str:
        """The id of a number, 0 or above."""
        return f"{self._lead}{number * _FACTOR & _MASK:016x}"

    def number_of(self, id_: str) -> int | None:
        """The number of an id that `make` made, else None."""
        digits = id_[len(self._lead) :]
        if not id_.startswith(self._lead) or len(digits) != _HEX_DIGITS:
            return None
        try:
            return int(digits, 16) * _INVERSE & _MASK
        except ValueError:
            return None
