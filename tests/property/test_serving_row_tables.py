"""Row tables under drawn batches, paddings, chunkings, reorderings and roll-backs, against row numbers from plain lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore
from ngramstore.keys import OverEncodingKeys
from ngramstore_torch import OverEncodingHash, RowTableEmbedding

VOCAB, DIM, ORDERS, SIZES, ABSENT = 5, 3, (2, 3, 3), (11, 13, 17), 4
MAX_ROLLBACK = 5
KEYS = OverEncodingKeys(vocab_size=VOCAB, orders=ORDERS, sizes=SIZES, absent_token_id=ABSENT)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    rows = np.random.default_rng(3).standard_normal((sum(SIZES), DIM)).astype(np.float32)
    path = tmp_path_factory.mktemp("row-tables") / "store"
    with ngramstore.build(path, dim=DIM, addressing="row", codec="f32") as build:
        build.add_rows(rows)
    with ngramstore.open(path, cache_bytes=600) as store:
        hashed = OverEncodingHash(VOCAB, (SIZES[0], SIZES[0], *SIZES[1:]), per_length=2)
        with pytest.raises(ngramstore.errors.UsageError):
            RowTableEmbedding(store, hashed)  # 52 rows are named, 41 are there
        yield rows, RowTableEmbedding(store, KEYS, combine="none")


def vectors(rows, sequence):
    """(J, D) of a sequence's last token, by Python's integers; (token, starts) pairs."""
    document = []
    for token, starts in sequence:
        document = [token] if starts else [*document, token]
    out = np.zeros((len(SIZES), DIM), np.float32)
    for j, (n, size) in enumerate(zip(ORDERS, SIZES, strict=True)):
        back = [document[-1 - k] if k < len(document) else ABSENT for k in range(n)]
        number = sum(token * VOCAB**k for k, token in enumerate(back)) % size
        out[j] = rows[sum(SIZES[:j]) + number]
    return out


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_way_of_feeding_the_tokens_gives_what_the_whole_sequence_gives(case, data):
    rows, embed = case
    sequences = [[] for _ in range(data.draw(st.integers(1, 3), label="B"))]
    taken = [0] * len(sequences)
    history = embed.new_history(len(sequences), max_rollback=MAX_ROLLBACK)
    for _ in range(data.draw(st.integers(1, 5), label="steps")):
        action = data.draw(st.sampled_from(["feed", "feed", "truncate", "reorder"]))
        B = len(sequences)
        if action == "truncate":
            counts = [
                data.draw(st.integers(0, min(len(s), MAX_ROLLBACK - t))) for s, t in zip(sequences, taken, strict=True)
            ]
            history.truncate(np.array(counts))
            sequences = [s[: len(s) - c] for s, c in zip(sequences, counts, strict=True)]
            taken = [t + c for t, c in zip(taken, counts, strict=True)]
            continue
        if action == "reorder":
            lines = [data.draw(st.integers(0, B - 1)) for _ in range(B)]
            history.reorder(lines)
            sequences, taken = [list(sequences[i]) for i in lines], [taken[i] for i in lines]
            continue
        T = data.draw(st.integers(0, 7), label="T")
        bits = st.lists(st.booleans(), min_size=B * T, max_size=B * T)
        tokens = np.array(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=B * T, max_size=B * T)), np.int64)
        tokens = tokens.reshape(B, T)
        mask = np.array(data.draw(bits), bool).reshape(B, T) if data.draw(st.booleans(), label="masked") else None
        starts = np.array(data.draw(bits), bool).reshape(B, T) if data.draw(st.booleans(), label="documents") else None
        given_ = {"history": history, "attention_mask": mask, "starts": starts}
        tensor = torch.from_numpy(tokens)
        ticket = embed.prefetch(tensor, **given_) if data.draw(st.booleans(), label="ticket") else None
        got = embed(tensor, **given_, ticket=ticket).numpy()
        want = np.zeros((B, T, len(SIZES), DIM), np.float32)
        for b, t in np.ndindex(B, T):
            if mask is None or mask[b, t]:
                sequences[b].append((int(tokens[b, t]), starts is not None and bool(starts[b, t])))
                taken[b] = max(0, taken[b] - 1)
                want[b, t] = vectors(rows, sequences[b])
        np.testing.assert_array_equal(got, want)
        assert history.lengths.tolist() == [len(s) for s in sequences]
