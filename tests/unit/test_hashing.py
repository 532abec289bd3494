"""IDs and checksums: pinned, chained by suffix, and the published XXH64."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_reader import mix64, ngram_id

from ngramstore.hashing import checksum, checksums, ngram_ids, row_ids

MASK = (1 << 64) - 1
PINNED = [
    ((0,), 0, 0x9E0160293A33AAF7),
    ((1,), 0, 0x3DD5EB0403EDDD79),
    ((0, 0), 0, 0x53068436CF225838),
    ((3, 14), 0, 0xC7B9046C2A9B9DCA),
    ((14, 3), 0, 0x445EE6D6DA0149BF),
    ((1, 2, 3), 0, 0xCF5516FE5F6CD1A2),
    ((1, 2, 3), 1, 0x273423D94602BBE6),
    ((4294967295, 4294967295), 0, 0xB1F78A555E1637FD),
    ((0,), 2**64 - 1, 0x19438AE6B813B33D),
    ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 12345, 0x42B203882CBB5CE5),
]


@pytest.mark.parametrize(("ngram", "seed", "wanted"), PINNED)
def test_ids_never_change(ngram, seed, wanted):
    assert int(ngram_ids(np.array([ngram], np.uint32), None, seed)[0]) == wanted


ngram = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=16).map(tuple)
seeds = st.integers(0, MASK)


@settings(deadline=None)
@given(ngram, seeds)
def test_ids_are_what_the_document_says(tokens, seed):
    assert int(ngram_ids(np.array([tokens], np.uint32), None, seed)[0]) == ngram_id(tokens, seed)


@settings(deadline=None)
@given(ngram, seeds, st.integers(0, 2**32 - 1))
def test_one_more_token_to_the_left_is_one_more_mix(tokens, seed, before):
    shorter = int(ngram_ids(np.array([tokens[:15]], np.uint32), None, seed)[0])
    longer = int(ngram_ids(np.array([(before, *tokens[:15])], np.uint32), None, seed)[0])
    assert longer == mix64(shorter ^ before + 1)


@settings(deadline=None)
@given(st.lists(ngram, min_size=1, max_size=5), seeds, st.integers(0, 2**32 - 1))
def test_what_stands_behind_an_ngram_does_not_count(ngrams, seed, junk):
    wide = np.full((len(ngrams), 17), junk, np.uint32)
    for i, tokens in enumerate(ngrams):
        wide[i, : len(tokens)] = tokens
    lengths = np.array([len(tokens) for tokens in ngrams])
    assert ngram_ids(wide, lengths, seed).tolist() == [ngram_id(tokens, seed) for tokens in ngrams]


def test_order_length_and_token_zero_count():
    ids = [ngram_id(tokens, 0) for tokens in [(0,), (0, 0), (0, 0, 0), (1, 2), (2, 1), (1, 2, 0), (0, 1, 2)]]
    got = [
        int(ngram_ids(np.array([t], np.uint32))[0])
        for t in [(0,), (0, 0), (0, 0, 0), (1, 2), (2, 1), (1, 2, 0), (0, 1, 2)]
    ]
    assert got == ids
    assert len(set(got)) == len(got)


def test_no_ngrams_no_ids():
    assert ngram_ids(np.empty((0, 3), np.uint32)).shape == (0,)
    assert checksums(np.empty(0, np.uint8), *(np.empty(0, np.int64),) * 2, np.empty(0, np.uint64)).shape == (0,)


def test_row_ids_are_one_mix_of_the_number():
    numbers = np.array([0, 1, 2**40, MASK], np.uint64)
    assert row_ids(numbers).tolist() == [mix64(number) for number in numbers.tolist()]
    assert len(np.unique(row_ids(np.arange(10_000)))) == 10_000


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 8, 11, 31, 32, 33, 63, 64, 1028, 4096])
@pytest.mark.parametrize("seed", [0, 1, MASK])
def test_checksums_are_the_low_half_of_the_published_xxh64(size, seed):
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8).tobytes()
    assert checksum(data, seed) == xxhash.xxh64_intdigest(data, seed) & 0xFFFFFFFF


@settings(deadline=None)
@given(st.binary(max_size=120), seeds, st.integers(0, 120))
def test_pieces_are_summed_where_they_lie(data, seed, cut):
    cut = min(cut, len(data))
    starts, sizes = np.array([0, cut]), np.array([cut, len(data) - cut])
    got = checksums(np.frombuffer(data, np.uint8), starts, sizes, np.array([seed, seed], np.uint64))
    assert got.tolist() == [xxhash.xxh64_intdigest(part, seed) & 0xFFFFFFFF for part in (data[:cut], data[cut:])]
