"""Any number of distinct n-grams and their rows, made from their numbers: nothing of them is kept, so 10**9 cost no memory.

Number i is the 3-gram whose tokens are the digits, base 50,257, of i * STEP mod 50,257**3: a permutation, so that no two are
equal. Its row comes from a mix of i. Numbers from ABSENT on are never stored.

Shapes: M numbers, D row width.
"""

from __future__ import annotations

import numpy as np

VOCABULARY = 50_257
ORDER = 3
STEP = 1_640_531_527  # a prime, so coprime to the modulus; times 2**32 it is below 2**63
ABSENT = 1 << 31
ABSENT_SHARE = 0.2
"""Of the keys of every mix but `absent`."""
HOT_KEYS = 100_000
"""The working set of the mix `hot`: the same number of keys for every size of store."""

_MODULUS = VOCABULARY**ORDER


def ngrams(numbers_M: np.ndarray) -> np.ndarray:
    """(M,) numbers below 2**32 -> (M, 3) u32 tokens."""
    place_M = numbers_M.astype(np.uint64) * np.uint64(STEP) % np.uint64(_MODULUS)
    tokens_M3 = np.empty((len(numbers_M), ORDER), np.uint32)
    for column in range(ORDER):
        tokens_M3[:, column] = place_M % np.uint64(VOCABULARY)
        place_M //= np.uint64(VOCABULARY)
    return tokens_M3


def rows(numbers_M: np.ndarray, dim: int) -> np.ndarray:
    """(M,) numbers -> (M, D) f32: uniform bytes -128..127, each row in a scale of its own. D is a multiple of 8."""
    words_MW = numbers_M.astype(np.uint64)[:, None] * np.uint64(dim // 8) + np.arange(dim // 8, dtype=np.uint64)
    words_MW ^= words_MW >> np.uint64(30)
    words_MW *= np.uint64(0xBF58476D1CE4E5B9)
    words_MW ^= words_MW >> np.uint64(27)
    words_MW *= np.uint64(0x94D049BB133111EB)
    words_MW ^= words_MW >> np.uint64(31)
    scale_M1 = (numbers_M % 31 + 1).astype(np.float32)[:, None] / np.float32(4096)
    return words_MW.view(np.int8).astype(np.float32) * scale_M1


def draw(mix: str, num_keys: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` numbers to look up: (count,) i64.

    zipf: exponent 1 over all keys, by the inverse of the logarithm, which needs no table; uniform; hot: uniform over
    the same 100,000 keys whatever the size; each with 20 % absent. absent: nothing else.
    """
    draw_M = rng.random(count)
    if mix == "zipf":
        numbers_M = np.exp(draw_M * np.log(num_keys + 1)).astype(np.int64) - 1
    elif mix == "uniform":
        numbers_M = (draw_M * num_keys).astype(np.int64)
    else:
        numbers_M = (draw_M * min(HOT_KEYS, num_keys)).astype(np.int64)
    numbers_M = np.minimum(numbers_M, num_keys - 1)
    absent_M = np.ones(count, bool) if mix == "absent" else rng.random(count) < ABSENT_SHARE
    numbers_M[absent_M] = ABSENT + rng.integers(0, ABSENT, int(absent_M.sum()))
    return numbers_M


def hit_rate(mix: str, num_keys: int, cached_M: np.ndarray) -> float:
    """Of the stored keys that a mix asks for, the share that is among these, each once."""
    if mix == "zipf":
        return float(_zipf_chances(num_keys, cached_M.astype(np.float64)).sum())
    return len(cached_M) / min(HOT_KEYS if mix == "hot" else num_keys, num_keys)


def _zipf_chances(num_keys: int, numbers_M: np.ndarray) -> np.ndarray:
    return np.log1p(1 / (numbers_M + 1)) / np.log(num_keys + 1)


def recently_used(mix: str, num_keys: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The stored keys that an endless run of a mix used last, `count` at most, the one used last at the end: (M,) i64.

    What a cache that evicts the least recently used of so many rows holds. The time since a key was used last is
    exponential, with the key's chance as its rate. To get there by look-ups would take several times as many as the
    cache has rows.
    """
    num = {"hot": min(HOT_KEYS, num_keys), "absent": 0}.get(mix, num_keys)
    since_N = rng.standard_exponential(num, np.float32)
    if mix == "zipf":
        since_N /= np.log1p(1 / np.arange(1, num + 1, dtype=np.float32))  # its chance in `draw`, but for a factor
    numbers_M = np.argpartition(since_N, count)[:count] if count < num else np.arange(num)
    return numbers_M[np.argsort(-since_N[numbers_M])]
