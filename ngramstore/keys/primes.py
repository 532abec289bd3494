"""Primes: whether a 64-bit integer is one, and which comes next."""

from __future__ import annotations

from collections.abc import Container

# Miller-Rabin with these twelve bases is right for every n below 3.3e24 (Sorenson and Webster, 2015).
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_prime(n: int) -> bool:
    """Exact for 0 <= n < 2**64."""
    assert n < 1 << 64
    if n < 2:
        return False
    for base in _BASES:
        if n % base == 0:
            return n == base
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd //= 2
        twos += 1
    return all(_passes(n, base, odd, twos) for base in _BASES)


def next_prime(n: int, taken: Container[int] = ()) -> int:
    """The smallest prime above n that is not taken."""
    candidate = n + 1
    while candidate in taken or not is_prime(candidate):
        candidate += 1
    return candidate


def _passes(n: int, base: int, odd: int, twos: int) -> bool:
    value = pow(base, odd, n)
    if value in (1, n - 1):
        return True
    for _ in range(twos - 1):
        value = value * value % n
        if value == n - 1:
            return True
    return False
