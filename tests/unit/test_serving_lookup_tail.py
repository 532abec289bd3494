"""`Store.lookup_tail` answers what `lookup` answers, for the last positions alone."""

from __future__ import annotations

import numpy as np
import pytest

import ngramstore
from ngramstore.errors import UsageError

DIM, MAX_N = 6, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tail") / "store"
    with ngramstore.build(path, dim=DIM, max_n=MAX_N, codec="f32", duplicates="last") as build:
        for n in range(2, MAX_N + 1):
            ngrams = np.unique(rng.integers(0, 5, (40, n)), axis=0)
            build.add(ngrams, rng.standard_normal((len(ngrams), DIM)))
    with ngramstore.open(path) as opened:
        yield opened


@pytest.mark.parametrize(("num_lines", "width", "count"), [(1, 4, 1), (1, 9, 3), (5, 4, 1), (3, 7, 7), (4, 6, 0)])
def test_the_tail_of_a_line_gets_what_the_whole_line_gets(store, num_lines, width, count):
    tokens = np.random.default_rng(1).integers(0, 5, (num_lines, width)).astype(np.uint32)
    want = store.lookup(tokens)
    room = np.minimum(np.arange(width - count + 1, width + 1), MAX_N).astype(np.uint8)
    out = np.full((num_lines, count, DIM), np.nan, np.float32)
    lengths = store.lookup_tail(tokens, np.tile(room, (num_lines, 1)), out=out)
    assert np.array_equal(lengths, want.length[:, width - count :])
    assert np.array_equal(out, want.rows[:, width - count :])


def test_room_bounds_the_match_and_zero_room_finds_nothing(store):
    tokens = np.random.default_rng(2).integers(0, 5, (50, 6)).astype(np.uint32)
    out = np.empty((50, 1, DIM), np.float32)
    assert store.lookup_tail(tokens, np.full((50, 1), 4, np.uint8), out=out).max() == 4
    short = store.lookup_tail(tokens, np.full((50, 1), 3, np.uint8), out=out)
    assert short.max() == 3
    assert np.array_equal(short[:, 0], store.lookup(tokens[:, 3:]).length[:, -1])
    assert not store.lookup_tail(tokens, np.zeros((50, 1), np.uint8), out=out).any()
    assert not out.any()


def test_a_u8_out_gets_the_stored_bytes(store):
    tokens = np.random.default_rng(3).integers(0, 5, (8, 5)).astype(np.uint32)
    room = np.full((8, 2), 4, np.uint8)
    rows, stored = np.empty((8, 2, DIM), np.float32), np.empty((8, 2, store.spec.codec.row_bytes), np.uint8)
    lengths = store.lookup_tail(tokens, room, out=rows)
    assert np.array_equal(store.lookup_tail(tokens, room, out=stored), lengths)
    assert np.array_equal(store.spec.codec.decode(stored.reshape(16, -1)).reshape(rows.shape), rows)


def test_after_many_positions_that_were_not_all_cached_some_calls_go_the_long_way_at_once(store):
    tokens = np.random.default_rng(4).integers(0, 5, (20, 4)).astype(np.uint32)
    room, out = np.full((20, 1), 4, np.uint8), np.empty((20, 1, DIM), np.float32)
    store.lookup_tail(tokens, room, out=out)
    with ngramstore.open(store.path) as cold:
        few, long_ways = cold._current.few, []
        for _ in range(40):
            again = np.empty_like(out)
            cold.lookup_tail(tokens, room, out=again)
            assert np.array_equal(again, out)
            long_ways.append(few._long_ways)
    assert long_ways == [*range(32, -1, -1), *[0] * 7]  # cached by then


def test_what_is_no_array_is_refused(store):
    tokens, room, out = np.zeros((1, 4), np.uint32), np.full((1, 1), 4, np.uint8), np.empty((1, 1, DIM), np.float32)
    with pytest.raises(UsageError, match="needs out"):
        store.lookup_tail(tokens, room, out=None)
    with pytest.raises(UsageError, match="list"):
        store.lookup_tail(tokens.tolist(), room, out=out)
    with pytest.raises(UsageError, match="list"):
        store.lookup_tail(tokens, room.tolist(), out=out)
    with pytest.raises(UsageError, match="out must be"):
        store.lookup_tail(tokens, room, out=out[0])


def test_a_tensor_as_out_is_refused_with_what_to_give_instead(store):
    torch = pytest.importorskip("torch")
    tokens, room = np.zeros((1, 4), np.uint32), np.full((1, 1), 4, np.uint8)
    tensor, bits = torch.empty(1, 1, DIM), torch.empty(1, 1, DIM, dtype=torch.bfloat16)
    for call in (
        lambda out: store.lookup_tail(tokens, room, out=out),
        lambda out: store.lookup_one(tokens[0], 4, 4, out=out[0, 0]),
        lambda out: store.lookup(tokens[:, :1], out=out),
        lambda out: store.get([(1, 2)], out=out[0]),
    ):
        for wrong, given in ((tensor, tensor.numpy()), (bits, bits.view(torch.uint16).numpy())):
            with pytest.raises(UsageError, match=r"out must be a numpy array of shape \(.*\), got a Tensor") as raised:
                call(wrong)
            assert "`t.numpy()`" in raised.value.hint and "`t.view(torch.uint16).numpy()`" in raised.value.hint
            call(given)


def test_room_that_reaches_before_the_line_is_refused(store):
    for shape in ((1, 3), (2, 3)):
        with pytest.raises(UsageError, match="room"):
            store.lookup_tail(
                np.zeros(shape, np.uint32),
                np.full((shape[0], 1), 4, np.uint8),
                out=np.empty((shape[0], 1, DIM), np.float32),
            )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.uint8])
def test_one_position_gets_what_the_tail_gets(store, dtype):
    tokens = np.random.default_rng(4).integers(0, 5, 30).astype(np.uint32)
    width = store.spec.codec.row_bytes if dtype == np.uint8 else DIM
    for _ in range(2):  # cached the second time
        for end in range(1, 31):
            for room in range(min(end, MAX_N + 2) + 1):
                begin = end - max(1, room)
                rows, row = np.empty((1, 1, width), dtype), np.empty(width, dtype)
                lengths = store.lookup_tail(tokens[None, begin:end], np.array([[room]], np.uint8), out=rows)
                assert store.lookup_one(tokens, end, room, out=row) == lengths[0, 0]
                assert np.array_equal(rows[0, 0], row)


def test_one_position_counts_as_one(tmp_path, store):
    tokens, out = np.array([1, 2, 3], np.uint32), np.empty(DIM, np.float32)
    before = store.stats()
    found = [store.lookup_one(tokens, 3, 3, out=out) > 0 for _ in range(4)]
    after = store.stats()
    assert after["calls"] - before["calls"] == after["positions"] - before["positions"] == 4
    assert after["found"] - before["found"] == sum(found)
    with store.trace() as recorder:
        assert (store.lookup_one(tokens, 3, 3, out=out) > 0) == found[0]
    assert recorder.result().num_lookups == 1


def test_one_position_outside_the_line_is_refused(store):
    tokens, out = np.zeros(3, np.uint32), np.empty(DIM, np.float32)
    for end, room in ((0, 0), (4, 1), (-1, 0), (2, 3), (2, -1)):
        with pytest.raises(UsageError, match="room"):
            store.lookup_one(tokens, end, room, out=out)
    for wrong in (tokens.tolist(), tokens[None]):
        with pytest.raises(UsageError, match="tokens"):
            store.lookup_one(wrong, 1, 1, out=out)
    for end, room in ((2.0, 1), (2, 1.0), ("2", 1), (2, None)):
        with pytest.raises(UsageError, match="must be integers"):
            store.lookup_one(tokens, end, room, out=out)
    assert store.lookup_one(tokens, np.int64(2), np.int32(1), out=out) == store.lookup_one(tokens, 2, 1, out=out)
    with pytest.raises(UsageError, match="int64"):
        store.lookup_one(tokens.astype(np.int64), 1, 1, out=out)
    for wrong in (None, out[None], out[:-1], out.tolist(), np.empty(2 * DIM, np.float32)[::2]):
        with pytest.raises(UsageError, match="out"):
            store.lookup_one(tokens, 1, 1, out=wrong)
