"""Frequent n-grams of all lengths from the positions of their first tokens, a group of positions at a time (docs/mining.md).

The positions of one n-gram are a group. A group is split by the token that comes next; what is left of it, the n-grams one token
longer that are frequent, is split in its turn before the next group is looked at, while its part of the text is in the
CPU's caches.
`ngramstore/kernels/reference/refining.py` says in plain Python what each function here means.

Shapes: T position, P positions of a range of first tokens, V tokens of the tokenizer, L lengths from 2, M n-grams of one length.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel

_32 = np.uint64(32)
_ONE = np.uint32(1)
_INSERTED = 32
"""Tokens. So few are sorted by insertion."""


@kernel
def place_positions(tokens_T, first, stop, next_V, out_P):
    """Enter each position t with first <= tokens[t] < stop at out[next[tokens[t]]], and add one to that `next`.

    next_V (V,) u32: where the positions of each token begin, and behind the call where they end. out_P u32.
    """
    for t in range(len(tokens_T)):
        token = np.int64(tokens_T[t])
        if first <= token < stop:
            at = next_V[token]
            out_P[at] = t
            next_V[token] = at + _ONE


@kernel
def refine_groups(
    tokens_T, first, stop, ends_V, min_count, positions_P, spare_P, follow_P, count_V, seen_V, stack_L3,
    out_keys_LM, out_counts_LM, used_L,
):  # fmt: skip
    """Append the n-grams of L lengths that begin with a token from first to stop and occur min_count times, in token order.

    tokens_T u16 or u32: V stands where no n-gram may reach, at the end too. positions_P (P + 1,) u32 holds from index 1
    the positions of each token, which end before ends_V[token]; it is used up. out_keys (L, M) u64: number of the
    prefix (its place in the row before; the token itself where n = 2) << 32 | last token; out_counts (L, M) u32. used_L
    i64: how many are there of each length. Room for P // min_count of each length is enough. Scratch: spare_P like
    positions_P, follow_P and seen_V (V + 2,) u32, count_V (V + 1,) u32 all zero before and behind the call, stack_L3
    i64. follow_P is as long as the largest group.
    """
    lengths = len(used_L)
    begin = np.int64(1)
    for token in range(first, stop):
        end = np.int64(ends_V[token])
        if end - begin < min_count:
            begin = end
            continue
        level = 0
        stack_L3[0, 0] = used_L[0]
        used_L[0] = _split(
            tokens_T, positions_P, spare_P, begin, end, 0, lengths == 1, token, min_count, follow_P, count_V, seen_V,
            out_keys_LM, out_counts_LM, used_L[0],
        )  # fmt: skip
        stack_L3[0, 1] = used_L[0]
        stack_L3[0, 2] = begin
        begin = end
        if lengths == 1:
            continue
        while level >= 0:  # stack: the next n-gram of this length to split, where they end, where its positions begin
            number = stack_L3[level, 0]
            if number == stack_L3[level, 1]:
                level -= 1
                continue
            begin_group = stack_L3[level, 2]
            end_group = begin_group + np.int64(out_counts_LM[level, number])
            stack_L3[level, 0] = number + 1
            stack_L3[level, 2] = end_group
            level += 1
            used = used_L[level]
            is_last = level == lengths - 1
            # A group's own positions are read from one array and written, shorter, to the same place in the other.
            if level % 2 == 1:
                used_L[level] = _split(
                    tokens_T, spare_P, positions_P, begin_group, end_group, level, is_last, number, min_count,
                    follow_P, count_V, seen_V, out_keys_LM, out_counts_LM, used,
                )  # fmt: skip
            else:
                used_L[level] = _split(
                    tokens_T, positions_P, spare_P, begin_group, end_group, level, is_last, number, min_count,
                    follow_P, count_V, seen_V, out_keys_LM, out_counts_LM, used,
                )  # fmt: skip
            if is_last:
                level -= 1
            else:
                stack_L3[level, 0] = used
                stack_L3[level, 1] = used_L[level]
                stack_L3[level, 2] = begin_group


@inline
def _split(
    tokens_T, from_P, to_P, begin, end, level, is_last, prefix, min_count, follow_P, count_V, seen_V, out_keys_LM,
    out_counts_LM, used,
):  # fmt: skip
    """Append what goes on from one group and is frequent: -> used. Its positions go to to_P from `begin`, group by group."""
    num_seen = 0
    for p in range(begin, end):
        token = np.uint32(tokens_T[np.int64(from_P[p]) + level + 1])
        follow_P[p - begin] = token
        seen_V[num_seen] = token
        num = count_V[token]
        num_seen += num == 0
        count_V[token] = num + _ONE
    kept = 0
    past = len(count_V) - 1
    for s in range(num_seen):
        token = seen_V[s]
        if count_V[token] >= min_count and token != past:
            seen_V[kept] = token
            kept += 1
        else:
            count_V[token] = 0
    _sort(seen_V, kept, count_V)
    at = begin
    for s in range(kept):
        token = seen_V[s]
        num = count_V[token]
        out_keys_LM[level, used] = (np.uint64(prefix) << _32) | np.uint64(token)
        out_counts_LM[level, used] = num
        used += 1
        count_V[token] = 0 if is_last else at
        at += np.int64(num)
    if is_last or kept == 0:
        return used
    for p in range(begin, end):  # places begin at 1: what is not frequent goes to place 0, without a branch
        token = follow_P[p - begin]
        place = count_V[token]
        to_P[place] = from_P[p]
        count_V[token] = place + np.uint32(place != 0)
    for s in range(kept):
        count_V[seen_V[s]] = 0
    return used


@inline
def _sort(seen_V, num, count_V):
    """Ascending order for the first `num` of seen_V, which are the tokens whose count is not zero."""
    if num > _INSERTED and 16 * num > len(count_V):
        at = 0
        for token in range(len(count_V)):
            if count_V[token] != 0:
                seen_V[at] = token
                at += 1
        return
    gap = 1
    while num > _INSERTED and gap < num:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort; from a gap of 1 on, insertion
        for s in range(gap, num):
            token = seen_V[s]
            at = s
            while at >= gap and seen_V[at - gap] > token:
                seen_V[at] = seen_V[at - gap]
                at -= gap
            seen_V[at] = token
        gap //= 3
