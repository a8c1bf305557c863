"""Ids that sort by time: 48 bits of milliseconds and 80 random bits, in 26 letters."""

from __future__ import annotations

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_RANDOM_BYTES = 10


def make_id(time_us: int, randomness: bytes) -> str:
    """Returns the id for an instant and ten random bytes; later instants sort later.

    >>> make_id(1_700_000_000_000_000, bytes(10))
    '01HF7YAT000000000000000000'
    >>> make_id(1_700_000_000_000_000, bytes(10)) < make_id(1_700_000_000_001_000, bytes(10))
    True
    """
    if len(randomness) != _RANDOM_BYTES:
        raise ValueError(f"make_id needs {_RANDOM_BYTES} random bytes, got {len(randomness)}")
    number = (time_us // 1000) << 80 | int.from_bytes(randomness, "big")
    letters = []
    for _ in range(_LENGTH):
        letters.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(letters))


def read_time_us(text: str) -> int:
    """Returns the instant inside an id, to the millisecond.

    >>> read_time_us("01HF7YAT000000000000000000")
    1700000000000000
    """
    if len(text) != _LENGTH or any(letter not in _ALPHABET for letter in text):
        raise ValueError(f"{text!r} is not a Headrace id: it needs {_LENGTH} letters of {_ALPHABET}")
    number = 0
    for letter in text:
        number = number << 5 | _ALPHABET.index(letter)
    return (number >> 80) * 1000
