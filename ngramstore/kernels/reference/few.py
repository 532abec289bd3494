"""What the kernels for a handful of look-ups in memory mean: hash, find or match, serve, one after the other."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native.call import COUNTS, RESIDENT, STATE
from ngramstore.kernels.native.few import LAYERS, LENGTHS_MASK, MAX_N, NUM_LAYERS, SEED, STOP_AT_MISS
from ngramstore.kernels.native.index import NUM_COLUMNS, RANK_MASK
from ngramstore.kernels.reference.cache import memory, serve_if_all_are_here
from ngramstore.kernels.reference.dequantize import OUT_BYTES, ROW_BYTES, write_row
from ngramstore.kernels.reference.hashing import ngram_ids_of_width
from ngramstore.kernels.reference.probe import find, match


def layers_of(call: np.ndarray) -> np.ndarray:
    """LAYERS, a line each."""
    size = int(call[NUM_LAYERS]) * NUM_COLUMNS
    return memory(int(call[LAYERS]), 8 * size).view(np.int64).reshape(-1, NUM_COLUMNS)


def seed_of(call: np.ndarray) -> int:
    """The seed of the IDs."""
    return int(call[SEED]) % (1 << 64)


def _serve(call: np.ndarray, keys_M: np.ndarray, target: int) -> bool:
    """Rows of keys -> target, zeros for keys below 0; False, and nothing has changed, where one is not in the cache."""
    if call[RESIDENT] == 0:
        return serve_if_all_are_here(int(call[STATE]), call, keys_M, len(keys_M), target)
    serve_resident(call, keys_M, target)
    return True


def serve_resident(call: np.ndarray, keys_M: np.ndarray, target: int) -> None:
    """Rows of keys in memory -> target, zeros for keys below 0."""
    for m, key in enumerate(keys_M.tolist()):
        row = target + m * int(call[OUT_BYTES])
        if key >= 0:
            write_row(call, int(call[RESIDENT]) + (key & RANK_MASK) * int(call[ROW_BYTES]), row)
        else:
            memory(row, int(call[OUT_BYTES]))[:] = 0


def serve_ngrams(call: np.ndarray, tokens_MN: np.ndarray, out: np.ndarray, found_M: np.ndarray) -> int:
    """Rows of M n-grams of N tokens -> out (C-contiguous, zeros where not stored) and found; returns how many.

    -1: one of them is not in the cache, or a page of the index is bad; nothing has changed.
    """
    count = len(tokens_MN)
    ids_M, keys_M = np.empty(count, np.uint64), np.empty(count, np.int64)
    ngram_ids_of_width(tokens_MN, seed_of(call), ids_M)
    if find(layers_of(call), ids_M, keys_M) < count:
        return -1
    if not _serve(call, keys_M, out.ctypes.data):
        return -1
    found_M[:] = keys_M >= 0
    memory(int(call[COUNTS]), 24).view(np.int64)[:] += [1, count, int(found_M.sum())]
    return int(found_M.sum())


def serve_tail(
    call: np.ndarray, tokens_BS: np.ndarray, room_BT: np.ndarray, out: np.ndarray, lengths_BT: np.ndarray
) -> int:
    """Longest match at the last T of S tokens of B lines -> rows in out (C-contiguous) and lengths; returns how many matched.

    room: as in `match`; it does not reach before a line. -1: as in `serve_ngrams`; -2: room reaches before a line.
    """
    num_lines, width = tokens_BS.shape
    first = width - room_BT.shape[1]
    room_BS = np.zeros((num_lines, width), np.uint8)
    room_BS[:, first:] = np.minimum(room_BT, int(call[MAX_N]))
    if (room_BS > np.arange(1, width + 1)).any():
        return -2
    count = num_lines * width
    keys_W, ids_W, lengths_W = np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.uint8)
    mask, stop_at_miss = int(call[LENGTHS_MASK]), bool(call[STOP_AT_MISS])
    done = match(
        layers_of(call),
        tokens_BS.reshape(-1),
        room_BS.reshape(-1),
        seed_of(call),
        mask,
        stop_at_miss,
        keys_W,
        ids_W,
        lengths_W,
    )
    if done < count:
        return -1
    keys_M = keys_W.reshape(num_lines, width)[:, first:].reshape(-1)
    if not _serve(call, keys_M, out.ctypes.data):
        return -1
    lengths_BT[:] = lengths_W.reshape(num_lines, width)[:, first:]
    num_found = int(np.count_nonzero(lengths_BT))
    memory(int(call[COUNTS]), 24).view(np.int64)[:] += [1, len(keys_M), num_found]
    return num_found


def serve_one(call: np.ndarray, tokens_S: np.ndarray, end: int, room: int, out: np.ndarray) -> int:
    """Longest match that ends at tokens[end - 1], of `room` tokens at most, room <= end <= S -> its row in out; returns
    its length.

    -1: as in `serve_ngrams`.
    """
    begin = end - max(1, room)  # without room the line is one token, and nothing is looked for
    lengths_11 = np.empty((1, 1), np.uint8)
    room_11 = np.array([[room]], np.uint8)
    num_found = serve_tail(call, tokens_S[None, begin:end], room_11, out[None, None], lengths_11)
    return int(lengths_11[0, 0]) if num_found >= 0 else -1
