"""The vocabulary: its file, what it refuses, and what it says about itself."""

from __future__ import annotations

import numpy as np
import pytest

from ngramstore.errors import DamagedStore, FormatError, UnsupportedVersion, UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.hashing import ngram_ids
from ngramstore.kernels.native import mining as native
from ngramstore.mine import Matcher, Vocabulary
from ngramstore.mine.miner import check_options
from ngramstore.mine.publish import published
from ngramstore.mine.vocab_file import VOCAB_HEADER

TOKENS = np.array([[7, 8, 0], [8, 9, 0], [7, 8, 9], [2**32 - 2, 0, 0]], np.int64)
LENGTHS = np.array([2, 2, 3, 2])
COUNTS = np.array([2**40, 6, 6, 5])


def small(**options) -> Vocabulary:
    facts = {"tokenizer_id": "abc", "tokenizer_name": "bpe", "corpus_id": "def", "corpus_tokens": 99, "held_out": 0.25}
    return Vocabulary(TOKENS, LENGTHS, COUNTS, **(facts | {"min_count": 5, "num_frequent": 40} | options))


def test_a_saved_vocabulary_loads_as_it_was(tmp_path):
    saved = small(max_n=5)
    saved.save(tmp_path / "v")
    loaded = Vocabulary.load(tmp_path / "v")
    assert np.array_equal(loaded.ngrams[0], np.pad(TOKENS, ((0, 0), (0, 2))))
    assert loaded.ngrams[0].dtype == np.uint32 and loaded.ngrams[1].dtype == np.uint8
    assert loaded.ngrams[1].tolist() == LENGTHS.tolist()
    assert loaded.counts.tolist() == COUNTS.tolist()
    assert (len(loaded), loaded.max_n, loaded.cutoff, loaded.min_count, loaded.num_frequent) == (4, 5, 5, 5, 40)
    for name in ("tokenizer_id", "tokenizer_name", "corpus_id", "corpus_tokens", "held_out"):
        assert getattr(loaded, name) == getattr(saved, name)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "v").read_bytes()


def test_an_empty_vocabulary_matches_nothing(tmp_path):
    Vocabulary(np.zeros((0, 3), np.uint32), np.zeros(0, int), np.zeros(0, int)).save(tmp_path / "v")
    empty = Vocabulary.load(tmp_path / "v")
    assert (len(empty), empty.cutoff, empty.is_suffix_closed()) == (0, 0, True)
    assert empty.tag(np.arange(3), np.zeros(0, int))[1].tolist() == [-1, -1, -1]


def test_of_two_that_write_one_path_the_first_to_begin_is_told(tmp_path):
    path = tmp_path / "v"
    others = []

    def write_and_be_overtaken():
        with published(path) as first:
            first.write(b"half of ")
            others.append(FileWriter(tmp_path / "v.tmp"))  # as another process does that begins now
            others[0].write(b"all")
            others[0].flush()

    with pytest.raises(UsageError, match="another process writes"):
        write_and_be_overtaken()
    assert not path.exists()
    assert (tmp_path / "v.tmp").read_bytes() == b"all"  # not taken from under the other's hands
    others[0].close()
    with published(path) as again:
        again.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert not (tmp_path / "v.tmp").exists()


def test_every_bit_flip_is_noticed(tmp_path):
    path = tmp_path / "v"
    small().save(path)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(FormatError, match=str(path)):
            Vocabulary.load(path)


def test_every_truncation_and_extension_is_noticed(tmp_path):
    path = tmp_path / "v"
    small().save(path)
    good = path.read_bytes()
    for bad in [good[:n] for n in range(len(good))] + [good + b"\0"]:
        path.write_bytes(bad)
        with pytest.raises(FormatError, match=str(path)):
            Vocabulary.load(path)


def test_what_is_no_vocabulary_is_said_to_be_none(tmp_path):
    with pytest.raises(UsageError, match="no vocabulary file"):
        Vocabulary.load(tmp_path)
    (tmp_path / "v").write_bytes(b"PAR1" * 50)
    with pytest.raises(FormatError, match="not a vocabulary file"):
        Vocabulary.load(tmp_path / "v")
    small().save(tmp_path / "v")
    data = bytearray((tmp_path / "v").read_bytes())
    data[VOCAB_HEADER.offset("version")] = 2
    (tmp_path / "v").write_bytes(data)
    with pytest.raises(UnsupportedVersion, match="version 2"):
        Vocabulary.load(tmp_path / "v")


def test_facts_of_a_wrong_kind_are_damage(tmp_path):
    small(corpus_tokens="many").save(tmp_path / "v")
    with pytest.raises(DamagedStore, match="corpus_tokens"):
        Vocabulary.load(tmp_path / "v")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": TOKENS[:3]}, "(M, K)"),
        ({"tokens": TOKENS[:, 0]}, "(M, K)"),
        ({"max_n": 2}, "max_n 2"),
        ({"max_n": 17}, "max_n 17"),
        ({"tokens": TOKENS - 1}, "tokens"),
        ({"tokens": TOKENS + 1}, str(2**32 - 1)),
        ({"tokens": TOKENS.astype(float)}, "float64"),
        ({"lengths": np.array([2, 2, 4, 2])}, "lengths"),
        ({"lengths": np.array([2, 1, 3, 2])}, "length 1"),
        ({"counts": COUNTS[::-1]}, "counts rise"),
        ({"tokens": TOKENS[[0, 1, 2, 0]]}, r"(7, 8)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    arrays = {"tokens": TOKENS, "lengths": LENGTHS, "counts": COUNTS} | {
        k: v for k, v in change.items() if k != "max_n"
    }
    with pytest.raises(UsageError) as caught:
        Vocabulary(*arrays.values(), max_n=change.get("max_n"))
    assert message in str(caught.value)


def test_another_tokenizer_is_refused_and_an_unknown_one_is_not():
    small().require_tokenizer("abc")
    small().require_tokenizer("")
    small(tokenizer_id="").require_tokenizer("xyz")
    with pytest.raises(UsageError, match=r"'bpe'.*xyz"):
        small().require_tokenizer("xyz")


def test_closedness_looks_at_suffixes():
    assert small().is_suffix_closed()
    assert not Vocabulary(TOKENS[[0, 2]], LENGTHS[[0, 2]], COUNTS[[0, 2]]).is_suffix_closed()


def test_a_set_that_is_not_closed_is_searched_to_the_longest():
    vocabulary = Vocabulary(TOKENS[[0, 2]], LENGTHS[[0, 2]], COUNTS[[0, 2]])
    assert vocabulary.tag(np.array([1, 7, 8, 9]), np.array([0]))[0].tolist() == [0, 0, 2, 3]


def test_tokens_beyond_any_stored_one_match_nothing():
    lengths, rows = small().tag(np.array([2**32 - 1, 2**32 - 2, 0, 7, 8, 9], np.uint32), np.array([0, 6]))
    assert lengths.tolist() == [0, 0, 2, 0, 2, 3]
    assert rows.tolist() == [-1, -1, 3, -1, 0, 2]


@pytest.mark.parametrize(
    ("tokens", "starts", "message"),
    [
        (np.zeros((2, 2), int), [0], "(2, 2)"),
        (np.zeros(2), [0], "float64"),
        (np.array([-1, 0]), [0], "-1"),
        (np.array([2**32]), [0], str(2**32)),
        (np.zeros(3, int), [3, 1], "offsets"),
        (np.zeros(3, int), [0, 4], "offsets"),
        (np.zeros(3, int), [True], "flags"),
        (np.zeros(3, int), [0.0, 1.0], "float64"),
    ],
)
def test_bad_tokens_and_starts_are_refused(tokens, starts, message):
    with pytest.raises(UsageError) as caught:
        small().tag(tokens, np.array(starts))
    assert message in str(caught.value)


def test_the_table_of_matches_is_keyed_by_the_id_of_seed_zero():
    """Tagging and stores hash alike, so one pinned definition covers both."""
    table = np.full((16, 2), 2**64 - 1, np.uint64)
    tokens, lengths = small().ngrams
    assert native.fill_matches(tokens, lengths, table) == -1
    keys = dict(zip(table[:, 1].tolist(), table[:, 0].tolist(), strict=True))
    assert [keys[m] for m in range(4)] == ngram_ids(tokens, lengths, 0).tolist()


@pytest.mark.parametrize("counts", [[9, 6, 6, -1], [9, 6, 6, 5.5], [9, 6, 6, np.nan], [True] * 4], ids=str)
def test_counts_are_whole_numbers(counts):
    with pytest.raises(UsageError, match="counts must be whole numbers"):
        Vocabulary(TOKENS, LENGTHS, np.array(counts))


@pytest.mark.parametrize("lengths", [[200], [3], [0], [2, 2], [[2]], [2.0]])
def test_lengths_that_do_not_fit_their_ngrams_are_refused(lengths):
    with pytest.raises(UsageError, match="lengths"):
        Matcher(np.array([[1, 2]], np.uint32), np.array(lengths))


@pytest.mark.parametrize("starts", [np.array([0, 100], np.uint8), [0, 100]])
def test_offsets_of_documents_may_be_of_a_small_type(starts, monkeypatch):
    monkeypatch.setattr("ngramstore.mine.vocab._PIECE_TOKENS", 70)
    vocabulary = Vocabulary(np.array([[1, 2]]), np.array([2]), np.array([5]), max_n=2)
    tokens = np.arange(300, dtype=np.uint32) % 3
    pieces = list(vocabulary.tag_pieces(tokens, starts))
    lengths, rows = vocabulary.tag(tokens, starts)
    np.testing.assert_array_equal(np.concatenate([piece[1] for piece in pieces]), lengths)
    np.testing.assert_array_equal(np.concatenate([piece[2] for piece in pieces]), rows)


@pytest.mark.parametrize("starts", [np.array([0.0, 2.7, 5.0]), [0, 2.0], [True, False, True]], ids=str)
def test_offsets_of_documents_are_integers(starts):
    """2.7 is none, and flags of a few tokens would be taken for offsets 0 and 1."""
    vocabulary = Vocabulary(np.array([[1, 2]]), np.array([2]), np.array([5]))
    with pytest.raises(UsageError, match="starts must be integers"):
        list(vocabulary.tag_pieces(np.arange(6), starts))


@pytest.mark.parametrize("name", ["max_n", "size", "min_count", "memory_bytes", "workers"])
def test_what_mining_counts_with_is_whole(name):
    options = {"max_n": 3, "size": 10, "min_count": 2, "memory_bytes": 1 << 30, "workers": 1, "held_out": 0.0}
    check_options(**options)
    with pytest.raises(UsageError, match=name):
        check_options(**options | {name: float(options[name])})
