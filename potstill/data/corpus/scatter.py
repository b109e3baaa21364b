"""The order of a great many examples: shuffled epochs of which none is held, each place computed when asked for."""

from __future__ import annotations

from hashlib import blake2b

from potstill.data.order import places

ROUNDS = 6


def scattered(position: int, count: int, num_examples: int, seed: int, *, shuffled_from: int = 0) -> list[int]:
    """Which examples are drawn next: as ``potstill.data.order.indices``, in another order and in constant memory.

    Args:
        position, count, num_examples, seed, shuffled_from: as there.
    Raises: ValueError for a negative position or count, or no examples.
    """
    return [
        permuted(offset, num_examples, f"{seed}/{epoch}") if epoch >= shuffled_from else offset
        for epoch, offset in places(position, count, num_examples)
    ]


def permuted(place: int, size: int, key: str) -> int:
    """Where a permutation of 0 to ``size`` - 1 sends a place; the key says which permutation.

    A Feistel network permutes the numbers of an even count of bits, at most four times as many as there are places; a
    number that is no place is permuted again until it is one.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains: the cycle-walking cipher.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    found = _network(place, half, key)
    while found >= size:
        found = _network(found, half, key)
    return found


def _network(number: int, half: int, key: str) -> int:
    """A permutation of the numbers of 2 x ``half`` bits."""
    mask = (1 << half) - 1
    left, right = number >> half, number & mask
    for turn in range(ROUNDS):
        digest = blake2b(f"{key}/{turn}/{right}".encode(), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
    return left << half | right
