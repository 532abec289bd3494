"""Key specs against plain loops over one position, and against themselves cut into chunks in every way."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.keys import keys_from_config

COMPRESSED = np.array([0, 1, 2, 3, 4, 1, 2, 0, 3])
ENGRAM = keys_from_config(
    {
        "engram_layer_ids": [0, 3],
        "engram_max_ngram_size": 3,
        "engram_vocab_size": 20,
        "engram_n_heads": 2,
        "engram_pad_token_id": 7,
        "engram_compressed_vocab_size": 5,
    },
    token_map=COMPRESSED,
)
QWEN = keys_from_config(
    {
        "vocab_size": 9,
        "ngram_size": 4,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 30,
        "ple_layer_ids": [5, 2],
        "make_ngram_vocab_size_divisible_by": 16,
        "eos_token_id": 3,
    }
)
LONGCAT = keys_from_config(
    {"vocab_size": 9, "ngram_vocab_size_ratio": 6, "emb_neighbor_num": 4, "emb_split_num": 2, "eos_token_id": 3}
)
OVER = keys_from_config(
    {"model_type": "over_encoding", "vocab_size": 9, "orders": [1, 3], "sizes": [9, 100], "absent_token_id": 4}
)
BYTES = keys_from_config(
    {"vocab_size": 9, "encoder_hash_byte_group_size": [2, 8], "encoder_hash_byte_group_vocab": 1009}
)
ALL = [ENGRAM, QWEN, LONGCAT, OVER, BYTES]
lines = st.lists(st.integers(0, 8), min_size=1, max_size=24)


def engram_row(tokens, p):
    """The published rule, a token at a time in Python integers."""
    out, first = [], 0
    for multipliers, sizes in zip(ENGRAM.multipliers, ENGRAM.sizes, strict=True):
        blocked, mix = False, 0
        for k in range(3):
            blocked = blocked or p - k < 0 or tokens[p - k] < 0
            mix ^= int(COMPRESSED[7] if blocked else COMPRESSED[tokens[p - k]]) * multipliers[k]
            if k >= 1:
                for size in sizes[2 * k - 2 : 2 * k]:
                    out.append(mix % size + first)
                    first += size
    return out


def qwen_row(tokens, p):
    out = []
    for t, (multipliers, sizes) in enumerate(zip(QWEN.multipliers, QWEN.sizes, strict=True)):
        first = sum(QWEN.table_rows[:t])
        back, walled = [tokens[p]], False
        for k in range(1, 4):
            walled = walled or p - k < 0 or tokens[p - k] == 3
            back.append(3 if walled else tokens[p - k])
        for n in range(2, 5):
            mix = 0
            for k in range(n):
                mix ^= back[k] * multipliers[k]
            for size in sizes[2 * n - 4 : 2 * n - 2]:
                out.append(mix % size + first)
                first += size
    return out


def longcat_row(tokens, p):
    start = max([q + 1 for q in range(p) if tokens[q] == 3], default=0)
    out, first = [], 0
    for i, size in enumerate(6 * 9 + 2 * i + 1 for i in range(6)):
        total = sum(tokens[p - k] * 9**k for k in range(2 + i // 2) if p - k >= start)
        out.append(total % size + first)
        first += size
    return out


def over_row(tokens, p):
    value = [tokens[p - k] if p >= k else 4 for k in range(3)]
    return [tokens[p] % 9, (value[0] + value[1] * 9 + value[2] * 81) % 100 + 9]


def byte_row(tokens, p):
    out = []
    for i, size in enumerate((2, 8)):
        window = [tokens[q] if q >= 0 else 0 for q in range(p - size + 1, p + 1)]
        total = sum(value * 1000000007**j for j, value in enumerate(window)) % (1 << 64)
        out.append((total - (1 << 64) if total >= 1 << 63 else total) % 1009 + i * 1009)
    return out


@given(lines)
def test_rows_are_what_a_plain_loop_says(line):
    rules = [engram_row, qwen_row, longcat_row, over_row, byte_row]
    for keys, rule in zip(ALL, rules, strict=True):
        assert keys.rows(line).tolist() == [rule(line, p) for p in range(len(line))], keys.model


@given(st.lists(st.integers(-1, 8), min_size=1, max_size=24))
def test_dead_positions_are_what_a_plain_loop_says(line):
    assert ENGRAM.rows(line).tolist() == [engram_row(line, p) for p in range(len(line))]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 8), min_size=20, max_size=20), st.lists(st.integers(0, 5), max_size=8))
def test_rows_do_not_depend_on_how_the_sequence_is_cut(line, cuts):
    tokens = np.array([line, line[::-1]])
    for keys in ALL:
        whole = keys.rows(tokens)
        history, pieces, at = None, [], 0
        for width in [*cuts, 20]:
            piece = tokens[:, at : at + width]
            pieces.append(keys.rows(piece, history))
            history = keys.advance(piece, history)
            at += width
        assert (np.concatenate(pieces, axis=1) == whole).all(), keys.model
        assert history.shape == (2, keys.reach)


@given(lines, st.integers(1, 5), st.lists(st.integers(0, 8), min_size=1, max_size=5))
def test_a_rejected_draft_leaves_no_trace_when_the_history_is_kept(line, kept, draft):
    for keys in ALL:
        history = keys.advance(line)
        keys.rows(draft, history)
        truth = draft[:kept]
        assert (keys.rows(truth, history) == keys.rows(line + truth)[len(line) :]).all()
