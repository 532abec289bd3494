"""Sizes computed before a build equal the files it writes."""

from __future__ import annotations

import numpy as np
import pytest
from store_cases import build, build_rows, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore.codec.registry import CODECS
from ngramstore.errors import UsageError


def file_bytes(path) -> dict[str, int]:
    """Bytes by suffix."""
    return {file.suffix: file.stat().st_size for file in path.iterdir() if file.suffix}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 63, 500])
def test_index_and_rows_are_known_to_the_byte(tmp_path, codec, count):
    path = build(tmp_path / "store", some_ngrams(count), some_rows(count, 33), codec=codec)
    [computed] = ngs.sizes(count, 33, codec=codec)
    real = file_bytes(path)
    assert (computed.index_bytes, computed.rows_bytes) == (real[".index"], real[".rows"])
    assert computed.codec == codec
    assert computed.num_rows == count
    with ngs.open(path, resident=True) as store:
        assert computed.row_bytes == store.spec.codec.row_bytes
        assert store.stats()["resident_bytes"] == count * computed.row_bytes
    assert computed.resident_bytes == count * computed.row_bytes + computed.index_bytes


@pytest.mark.parametrize("codec", CODECS)
def test_without_tokens_the_whole_is_known_to_the_byte(tmp_path, codec):
    path = build(tmp_path / "store", some_ngrams(200), some_rows(200), codec=codec, tokens=False)
    [computed] = ngs.sizes(200, 6, codec=codec, tokens=False)
    assert computed.tokens_bytes == 0
    assert computed.disk_bytes == sum(file_bytes(path).values())


@pytest.mark.parametrize("codec", CODECS)
def test_rows_by_number_are_known_to_the_byte(tmp_path, codec):
    path = build_rows(tmp_path / "store", some_rows(100), codec=codec)
    [computed] = ngs.sizes(100, 6, codec=codec, addressing="row")
    assert computed.tokens_bytes == 0
    assert computed.disk_bytes == sum(file_bytes(path).values())


def test_the_tokens_are_estimated_well(tmp_path):
    ngrams = some_ngrams(3000, vocabulary=15_000)
    path = build(tmp_path / "store", ngrams, some_rows(3000, 2))
    mean = float(np.mean([len(ngram) for ngram in ngrams]))
    [computed] = ngs.sizes(3000, 2, codec="f32", mean_length=mean)
    assert computed.tokens_bytes == pytest.approx(file_bytes(path)[".tokens"], rel=0.15)


def test_all_codecs_are_listed_when_none_is_named():
    listed = ngs.sizes(10**9, 1024)
    assert [each.codec for each in listed] == list(CODECS)
    assert all(each.disk_bytes == each.index_bytes + each.rows_bytes + each.tokens_bytes for each in listed)
    assert listed[0].as_dict()["rows_bytes"] == 4096 + 10**9 * 4100


def test_a_cache_for_all_rows_holds_all_rows(tmp_path):
    ngrams = some_ngrams(100)
    path = build(tmp_path / "store", ngrams, some_rows(100))
    [computed] = ngs.sizes(100, 6, codec="f32")
    with ngs.open(path, cache_bytes=computed.cache_bytes_for_all) as store:
        store.get(ngrams)
        stats = store.stats()
    assert (stats["cache_rows"], stats["cache_evicted"]) == (100, 0)


def test_an_unknown_codec_is_refused():
    with pytest.raises(UsageError, match="int7"):
        ngs.sizes(10, 10, codec="int7")


@pytest.mark.parametrize("share", [1, 0.1])
def test_a_cache_of_the_bytes_for_all_holds_all_rows_and_a_share_of_them_a_share(tmp_path, share):
    path = build(tmp_path / "store", some_ngrams(500), some_rows(500, 24), codec="int8")
    [computed] = ngs.sizes(500, 24, codec="int8")
    with ngs.open(path, cache_bytes=int(share * computed.cache_bytes_for_all)) as store:
        assert store.stats()["cache_slots"] == share * 500


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((10, 10), {"addressing": "ngrams"}, "addressing is 'ngrams'"),
        ((1e9, 2048), {}, "num_rows is 1000000000.0"),
        ((-5, 4), {}, "num_rows is -5"),
        ((0, 4), {}, "num_rows is 0"),
        ((True, 4), {}, "num_rows is True"),
        (("10", 4), {}, "num_rows is '10'"),
        ((1 << 40, 4), {}, "num_rows is 1099511627776"),
        ((10, 0), {}, "dim"),
        ((10, 4.0), {}, "dim"),
        ((10, 4), {"mean_length": 0.5}, "mean_length is 0.5"),
        ((10, 4), {"mean_length": 17}, "mean_length is 17"),
        ((10, 4), {"mean_length": float("nan")}, "mean_length is nan"),
        ((10, 4), {"mean_length": "3"}, "mean_length is '3'"),
    ],
)
def test_what_no_store_can_be_is_refused(arguments, options, match):
    with pytest.raises(UsageError, match=rf"(?s){match}.*hint: "):
        ngs.sizes(*arguments, **options)


def test_numbers_of_numpy_are_numbers():
    assert ngs.sizes(np.int32(10**9), np.int64(2048)) == ngs.sizes(10**9, 2048)
