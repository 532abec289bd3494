"""Compiled kernels against their plain twins, byte for byte: index, rows, cache, tokens, packing; hashing too.

Fault codes count: a bad page, a row that is cut or changed. Codecs and mining have their own parity tests.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore
from ngramstore.hashing import checksums, ngram_ids
from ngramstore.kernels.native import hashing as native_hashing
from ngramstore.kernels.native import index as native_index
from ngramstore.kernels.native import packing as native_packing
from ngramstore.kernels.native import probe as native_probe
from ngramstore.kernels.native import rows as native_rows
from ngramstore.kernels.native import tokens as native_tokens
from ngramstore.kernels.reference import hashing as reference_hashing
from ngramstore.kernels.reference import index as reference_index
from ngramstore.kernels.reference import packing as reference_packing
from ngramstore.kernels.reference import probe as reference_probe
from ngramstore.kernels.reference import rows as reference_rows
from ngramstore.kernels.reference import tokens as reference_tokens
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index import Index, page_and_line
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan

KERNELS = Path(ngramstore.__file__).parent / "kernels"
STAMP = FileStamp(bytes(16), 1)
PAGE = 4096

# Names


def functions(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Public functions of a file: name -> parameter names, decorator names."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            decorators = [item.id for item in node.decorator_list if isinstance(item, ast.Name)]
            found[node.name] = ([argument.arg for argument in node.args.args], decorators)
    return found


HELPERS = ("__init__", "call", "memory", "cache_table", "cache_oldest")
"""Modules without kernels of their own."""
TOPICS = sorted(path.stem for path in (KERNELS / "native").glob("*.py") if path.stem not in HELPERS)


def test_every_topic_has_a_twin():
    twins = {path.stem for path in (KERNELS / "reference").glob("*.py")} - {"__init__"}
    assert twins == set(TOPICS)


@pytest.mark.parametrize("topic", TOPICS)
def test_native_and_reference_have_the_same_kernels_with_the_same_parameters(topic):
    native, reference = functions(KERNELS / "native" / f"{topic}.py"), functions(KERNELS / "reference" / f"{topic}.py")
    kernels = {name: parameters for name, (parameters, decorators) in native.items() if "kernel" in decorators}
    assert kernels, f"no kernels found in {topic}.py"
    for name, parameters in kernels.items():
        assert name in reference, f"{topic}.{name} has no twin"
        assert reference[name][0] == parameters
    spelled_out = {
        "xxh64",
        "memory",
        "put_out",
        "read",
        "check_pages",
        "seed_of",
        "serve_resident",
    }  # native loads from an address
    assert set(reference) - set(kernels) <= set(native) | spelled_out


# Index


@dataclass(frozen=True)
class FixedPlan(IndexPlan):
    """A plan with as many bucket bits as the test wants."""

    bits: int = 1

    @property
    def bucket_bits(self) -> int:
        return self.bits


def index_bytes(plan: IndexPlan, ids: np.ndarray, path: Path, lengths: np.ndarray | None = None) -> np.ndarray:
    """The file of an index, as a writable array."""
    builder = IndexBuilder(plan)
    if plan.is_keyed:
        builder.add(ids)
    if lengths is not None:
        builder.set_lengths(0, lengths)
    builder.write(path, STAMP, data_at=PAGE)
    return np.fromfile(path, np.uint8)


def opened(plan: IndexPlan, data: np.ndarray, *, line: int = 0, is_tombstone: bool = False) -> Index:
    """An index over those bytes, nothing verified yet."""
    index = Index(plan, data, is_verified=False, name="test")
    index.line[native_index.SERIAL] = line
    index.line[native_index.IS_TOMBSTONE] = is_tombstone
    return index


def some_ids(count: int, seed: int = 0, *, shift: int = 0) -> np.ndarray:
    """Sorted distinct IDs, the first and the last possible one among them."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 1 << 64, count, np.uint64, endpoint=False) >> np.uint64(shift)
    if count > 1:
        ids[0], ids[1] = 0, (1 << 64) - 1
    return np.unique(ids)


def both_find(make, ids: np.ndarray) -> np.ndarray:
    """Keys of `find`, the same from both packages; without a bad page the marks of verified pages too."""
    results = []
    for module in (native_probe, reference_probe):
        indexes = make()
        keys = np.full(len(ids), -999)
        done = module.find(np.stack([index.line for index in indexes]), ids, keys)
        is_done = done == len(ids)
        marks = [index._page_ok.tolist() for index in indexes] if is_done else []
        results.append((done, keys[: done + (not is_done)].tolist(), marks))
    assert results[0] == results[1]
    return np.array(results[0][1])


def probes(ids: np.ndarray, seed: int = 1) -> np.ndarray:
    """Present IDs, neighbours of them that differ in one bit, and others; duplicates too."""
    rng = np.random.default_rng(seed)
    near = ids ^ (np.uint64(1) << rng.integers(0, 64, len(ids)).astype(np.uint64))
    edge = np.array([0, 1, (1 << 64) - 1, (1 << 64) - 2, 1 << 63], np.uint64)
    return np.concatenate([ids, near, ids[:3], edge, rng.integers(0, 1 << 64, 20, np.uint64, endpoint=False)])


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 11, 14, 17])
@pytest.mark.parametrize("group_bits", [1, 2, 16])
def test_find_agrees_with_its_twin_and_a_set(tmp_path, bits, group_bits):
    ids = some_ids(150, bits)
    plan = FixedPlan(len(ids), True, False, group_bits, bits=bits)
    data = index_bytes(plan, ids, tmp_path / "index")
    wanted = probes(ids)
    keys = both_find(lambda: [opened(plan, data)], wanted)
    ranks = {identity: rank for rank, identity in enumerate(ids.tolist())}
    assert keys.tolist() == [ranks.get(identity, -1) for identity in wanted.tolist()]


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 257])
def test_find_and_ids_agree_at_the_planned_sizes(tmp_path, count):
    ids = some_ids(count, count)
    plan = IndexPlan(len(ids), True, False, group_bits=2)
    data = index_bytes(plan, ids, tmp_path / "index")
    assert len(data) == plan.file_bytes
    keys = both_find(lambda: [opened(plan, data)], probes(ids))
    assert (keys[: len(ids)] == np.arange(len(ids))).all()
    for first, number in {(0, len(ids)), (len(ids) // 2, len(ids) - len(ids) // 2), (len(ids), 0)}:
        got = [np.zeros(number, np.uint64), np.zeros(number, np.uint64)]
        for module, out in zip((native_index, reference_index), got, strict=True):
            assert module.ids_of_ranks(opened(plan, data).line[None], 0, first, out) == -1
        assert (got[0] == ids[first : first + number]).all()
        assert (got[1] == got[0]).all()


def test_ids_that_share_their_first_bits_are_told_apart_by_the_last(tmp_path):
    ids = np.unique(
        np.concatenate([np.arange(60, dtype=np.uint64), np.arange(60, dtype=np.uint64) + np.uint64(1 << 63)])
    )
    for bits in (1, 4, 16):
        plan = FixedPlan(len(ids), True, False, bits=bits)
        data = index_bytes(plan, ids, tmp_path / "index")
        wanted = np.concatenate([ids, ids + np.uint64(100)])
        keys = both_find(lambda plan=plan, data=data: [opened(plan, data)], wanted)
        assert keys.tolist() == [*range(120), *[-1] * 120]


def test_the_newest_layer_decides_and_tombstones_hide(tmp_path):
    ids = some_ids(90)
    plans, datas = [], []
    for part in (ids[::3], ids[::2], ids):
        plans.append(IndexPlan(len(part), True, False, group_bits=2))
        datas.append(index_bytes(plans[-1], part, tmp_path / "index"))

    def make():
        flags = [True, False, False]
        return [
            opened(p, d, line=i, is_tombstone=f) for i, (p, d, f) in enumerate(zip(plans, datas, flags, strict=True))
        ]

    keys = both_find(make, ids)
    for rank, key in enumerate(keys.tolist()):
        gone, newer = rank % 3 == 0, rank % 2 == 0
        assert key == (-1 if gone else (1 << 40 | rank // 2) if newer else 2 << 40 | rank)


def test_a_table_of_tombstones_alone_has_nothing(tmp_path):
    ids = some_ids(90)
    plan = IndexPlan(len(ids), True, False, group_bits=2)
    data = index_bytes(plan, ids, tmp_path / "index")
    assert (both_find(lambda: [opened(plan, data, is_tombstone=True)], ids) == -1).all()


@pytest.mark.parametrize("bits", [3, 9])
def test_pages_that_were_verified_before_answer_the_same(tmp_path, bits):
    """The first pass verifies, the second believes; buckets of hundreds of IDs reach over pages."""
    ids = some_ids(9000)
    plan = FixedPlan(len(ids), True, False, group_bits=2, bits=bits)
    data = index_bytes(plan, ids, tmp_path / "index")
    index, wanted = opened(plan, data), probes(ids[::3])
    layers, keys = index.line[None].copy(), np.empty((3, len(wanted)), np.int64)
    half = wanted[: len(wanted) // 2]
    native_probe.find(layers, half, keys[0, : len(half)])  # some pages good, others not yet looked at
    for row in keys[1:]:
        assert native_probe.find(layers, wanted, row) == len(wanted)
    ranks = {identity: rank for rank, identity in enumerate(ids.tolist())}
    assert keys[1].tolist() == keys[2].tolist() == [ranks.get(identity, -1) for identity in wanted.tolist()]
    assert keys[0, : len(half)].tolist() == keys[1, : len(half)].tolist()


def test_every_page_of_an_index_has_its_own_fault_code(tmp_path):
    ids = some_ids(3000)
    plan = IndexPlan(len(ids), True, False, group_bits=2)
    good = index_bytes(plan, ids, tmp_path / "index")
    pages = plan.sections()["checksums"][0] // PAGE
    faults = set()
    for page in range(1, pages):
        data = good.copy()
        data[page * PAGE + 17] ^= 4
        sound = opened(plan, good, line=0)
        keys = both_find(lambda data=data, sound=sound: [sound, opened(plan, data, line=1)], ids[::40] ^ np.uint64(1))
        if keys.min() < -1:
            assert page_and_line(int(keys[-1])) == (page, 1)
            faults.add(page)
        got = [
            module.ids_of_ranks(opened(plan, data).line[None], 0, 0, np.zeros(len(ids), np.uint64))
            for module in (native_index, reference_index)
        ]
        assert got == [page, page]
    needed = {plan.sections()[name][0] // PAGE for name in ("groups", "directory", "remainders")}
    assert needed <= faults


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_directory_of_lies_under_good_checksums_never_leads_outside(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("index") / "index"
    ids = some_ids(100)
    plan = IndexPlan(len(ids), True, False, group_bits=2)
    lying = index_bytes(plan, ids, path)
    for section in ("groups", "directory"):
        at, size = plan.sections()[section]
        for position in data.draw(st.lists(st.integers(0, size - 1), max_size=4)):
            lying[at + position] = data.draw(st.integers(0, 255))
    end = plan.sections()["checksums"][0]
    pages = np.arange(1, end // PAGE)
    sums = checksums(lying, pages * PAGE, np.full(len(pages), PAGE), pages.astype(np.uint64))
    lying[end : end + 4 * len(pages)] = sums.view(np.uint8)
    index, keys = opened(plan, lying), np.empty(1, np.int64)
    for identity in ids[::5]:  # a bucket that reaches into others need not be sorted: only the range is promised
        native_probe.find(index.line[None], np.array([identity]), keys)
        assert keys[0] < len(ids)
        assert keys[0] >= 0 or keys[0] == -1 or page_and_line(int(keys[0]))[0] < end // PAGE


def match_case(tmp_path, tokens_WN, lengths_W, tokens, room, *, stop=False, break_page=None):
    ids = ngram_ids(tokens_WN, lengths_W, 5)
    order = np.argsort(ids)
    plan = IndexPlan(len(ids), True, False, group_bits=2)
    data = index_bytes(plan, ids[order], tmp_path / "index")
    if break_page is not None:
        data[break_page * PAGE] ^= 1
    mask = int(np.bitwise_or.reduce(1 << lengths_W.astype(np.int64)))
    results = []
    for module in (native_probe, reference_probe):
        keys, out_ids = np.full(len(tokens), -9), np.full(len(tokens), 9, np.uint64)
        lengths = np.full(len(tokens), 9, np.uint8)
        layers = opened(plan, data).line[None]
        done = module.match(layers, tokens, room, 5, mask, stop, keys, out_ids, lengths)
        stop_at = slice(0, len(tokens)) if done == len(tokens) else slice(done, done + 1)
        results.append(
            (done, keys[stop_at].tolist(), *([out_ids.tolist(), lengths.tolist()] if done == len(tokens) else []))
        )
    assert results[0] == results[1]
    return results[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=40, unique=True),
    st.integers(0, 2**32),
)
def test_match_agrees_with_its_twin_and_a_dictionary(tmp_path_factory, ngrams, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 4, 70).astype(np.uint32)
    room = np.minimum(np.arange(70) % 23 + 1, rng.integers(1, 5, 70)).astype(np.uint8)
    wide = np.zeros((len(ngrams), 4), np.uint32)
    for i, ngram in enumerate(ngrams):
        wide[i, : len(ngram)] = ngram
    stored = np.array([len(ngram) for ngram in ngrams], np.uint8)
    done, _, _, lengths = match_case(tmp_path_factory.mktemp("match"), wide, stored, tokens, room)
    assert done == 70
    known = set(ngrams)
    for w in range(70):
        fits = [n for n in range(1, room[w] + 1) if tuple(tokens[w - n + 1 : w + 1].tolist()) in known]
        assert lengths[w] == max(fits, default=0)


def test_match_stops_at_the_first_miss_only_where_it_may(tmp_path):
    stored = np.array([[1, 2, 3], [3, 0, 0]], np.uint32)
    tokens, room = np.array([1, 2, 3], np.uint32), np.array([1, 2, 3], np.uint8)
    assert match_case(tmp_path, stored, np.array([3, 1], np.uint8), tokens, room)[3] == [0, 0, 3]
    assert match_case(tmp_path, stored, np.array([3, 1], np.uint8), tokens, room, stop=True)[3] == [
        0,
        0,
        3,
    ]  # no 2-gram is stored
    with_pair = np.array([[1, 2, 3], [3, 0, 0], [9, 9, 0]], np.uint32)
    lengths = np.array([3, 1, 2], np.uint8)
    assert match_case(tmp_path, with_pair, lengths, tokens, room)[3] == [0, 0, 3]
    assert match_case(tmp_path, with_pair, lengths, tokens, room, stop=True)[3] == [0, 0, 1]


@pytest.mark.parametrize("page", [1, 2, 3])
def test_match_reports_the_same_bad_page(tmp_path, page):
    rng = np.random.default_rng(0)
    ngrams = np.unique(rng.integers(0, 9, (60, 2)).astype(np.uint32), axis=0)
    tokens = rng.integers(0, 9, 100).astype(np.uint32)
    room = np.minimum(np.arange(100) + 1, 2).astype(np.uint8)
    done, keys = match_case(tmp_path, ngrams, np.full(len(ngrams), 2, np.uint8), tokens, room, break_page=page)
    assert done < 100
    assert keys == [-2 - page * native_index.MAX_LINES]


def test_match_of_no_tokens(tmp_path):
    none = np.empty(0, np.uint32)
    result = match_case(tmp_path, np.ones((1, 1), np.uint32), np.ones(1, np.uint8), none, np.empty(0, np.uint8))
    assert result == (0, [], [], [])


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 16, 29, 31])
@pytest.mark.parametrize("count", [0, 1, 8, 13])
def test_low_bits_are_packed_alike(width, count):
    ids = some_ids(count + 2, width)[:count]
    packed = [np.zeros(-(-count * width // 8) + 8, np.uint8) for _ in range(2)]
    native_index.pack_low_bits(ids, width, packed[0])
    reference_index.pack_low_bits(ids, width, packed[1])
    assert packed[0].tobytes() == packed[1].tobytes()


# Rows


def rows_case(tmp_path, *, is_sized: bool):
    """A layer line, an open descriptor, what each row holds and its seed."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 41, 150) if is_sized else np.full(150, 40)
    pieces, seeds = [], rng.integers(0, 1 << 64, 150, np.uint64, endpoint=False)
    for length, seed in zip(lengths.tolist(), seeds.tolist(), strict=True):
        row = rng.integers(0, 256, length).astype(np.uint8)
        sums = checksums(row, np.zeros(1, np.int64), np.array([length]), np.array([seed], np.uint64))
        pieces.append(row.tobytes() + sums.tobytes())
    path = tmp_path / "rows"
    path.write_bytes(bytes(PAGE) + b"".join(pieces))
    plan = IndexPlan(150, False, is_sized)
    data = index_bytes(plan, np.empty(0, np.uint64), tmp_path / "index", lengths if is_sized else None)
    return plan, data, path, pieces, seeds


def both_read(plan, data, path, keys, seeds):
    """What `read_rows` gives, the same from both: (status, lengths, slots of good rows)."""
    fd = os.open(path, os.O_RDONLY)
    results = []
    for module in (native_rows, reference_rows):
        index = opened(plan, data)
        line = index.line
        line[native_index.ROWS_FD], line[native_index.ROWS_DATA_AT], line[native_index.ROW_BYTES] = fd, PAGE, 40
        staging, lengths = np.zeros(len(keys) * 44, np.uint8), np.full(len(keys), -5)
        status = np.full(len(keys), 99, np.uint8)
        other = np.zeros_like(line)
        other[native_index.SERIAL] = 77
        told = module.read_rows(np.stack([other, line]), keys, seeds, 44, staging, lengths, status)
        is_placed = status != native_rows.BAD_INDEX_PAGE
        num_packed = np.count_nonzero((status == 0) & (lengths < 40))
        assert told == (np.count_nonzero(status), num_packed, int((lengths[is_placed] + 4).sum()))
        results.append((status.tolist(), lengths.tolist(), staging.tobytes()))
    os.close(fd)
    assert results[0] == results[1]
    return results[0]


@pytest.mark.parametrize("is_sized", [False, True])
def test_rows_are_read_alike(tmp_path, is_sized):
    plan, data, path, pieces, seeds = rows_case(tmp_path, is_sized=is_sized)
    keys = np.array([149, 0, 63, 64, 65, 0, 128])
    status, lengths, staging = both_read(plan, data, path, keys, seeds[keys])
    assert status == [0] * 7
    for u, key in enumerate(keys.tolist()):
        assert staging[u * 44 : u * 44 + len(pieces[key])] == pieces[key]
        assert lengths[u] == len(pieces[key]) - 4
    assert both_read(plan, data, path, keys[:0], seeds[:0]) == ([], [], b"")


@pytest.mark.parametrize("is_sized", [False, True])
def test_changed_misplaced_and_cut_rows_have_the_same_status(tmp_path, is_sized):
    plan, data, path, pieces, seeds = rows_case(tmp_path, is_sized=is_sized)
    whole = bytearray(path.read_bytes())
    whole[PAGE + sum(map(len, pieces[:5]))] ^= 1
    path.write_bytes(whole)
    os.truncate(path, len(whole) - 1)
    keys = np.array([4, 5, 6, 149])
    used = seeds[keys].copy()
    used[2] ^= np.uint64(1)  # the row of another ID
    assert both_read(plan, data, path, keys, used)[0] == [
        0,
        native_rows.BAD_CHECKSUM,
        native_rows.BAD_CHECKSUM,
        native_rows.CUT_SHORT,
    ]
    os.truncate(path, PAGE)
    assert both_read(plan, data, path, keys, used)[0] == [native_rows.CUT_SHORT] * 4


@pytest.mark.parametrize("section", ["offsets", "lengths"])
def test_a_bad_page_of_places_is_told_from_a_bad_row(tmp_path, section):
    plan, data, path, _, seeds = rows_case(tmp_path, is_sized=True)
    data[plan.sections()[section][0] + 4000] ^= 8
    status, lengths, _ = both_read(plan, data, path, np.array([3, 70]), seeds[[3, 70]])
    assert status == [native_rows.BAD_INDEX_PAGE] * 2
    assert lengths == [-5, -5]


def test_a_length_that_no_row_has_is_a_fault_of_the_index(tmp_path):
    plan, _, path, _, seeds = rows_case(tmp_path, is_sized=True)
    lengths = np.full(150, 20)
    lengths[9] = 41
    data = index_bytes(plan, np.empty(0, np.uint64), tmp_path / "index", lengths)
    assert both_read(plan, data, path, np.array([9]), seeds[[9]])[0] == [native_rows.BAD_INDEX_PAGE]


# Tokens

tokens_u32 = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 127, 128, 16383, 16384, 2**21, 2**28 - 1, 2**28, 2**32 - 1])
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(tokens_u32, min_size=1, max_size=5), max_size=12))
def test_ngrams_are_written_alike_and_come_back(ngrams):
    wide = np.zeros((len(ngrams), 5), np.uint32)
    for m, ngram in enumerate(ngrams):
        wide[m, : len(ngram)] = ngram
    lengths = np.array([len(ngram) for ngram in ngrams], np.uint8)
    written = []
    for module in (native_tokens, reference_tokens):
        out, ends = np.zeros(26 * len(ngrams), np.uint8), np.zeros(len(ngrams), np.int64)
        module.encode_ngrams(wide, lengths, out, ends)
        written.append((out.tobytes(), ends.tolist()))
    assert written[0] == written[1]
    data = np.frombuffer(written[0][0], np.uint8)[: max(written[0][1], default=0)]
    for module in (native_tokens, reference_tokens):
        tokens, sizes = np.full(wide.shape, 9, np.uint32), np.zeros(len(ngrams), np.uint8)
        assert module.decode_ngrams(data, tokens, sizes) == len(data)
        assert (tokens == wide).all()
        assert (sizes == lengths).all()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 255), st.sampled_from([1, 2, 0x80, 0xFF, 0x0F, 0x10])), max_size=24),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_any_bytes_are_read_alike_or_refused_alike(data, count, width):
    results = []
    for module in (native_tokens, reference_tokens):
        tokens, lengths = np.zeros((count, width), np.uint32), np.zeros(count, np.uint8)
        used = module.decode_ngrams(np.array(data, np.uint8), tokens, lengths)
        results.append((used, tokens.tolist() if used >= 0 else None, lengths.tolist() if used >= 0 else None))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("data", "used"),
    [
        ([1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], 6),
        ([1, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F], -1),  # 2**33 - 1
        ([1, 0x81, 0x80, 0x80, 0x80, 0x80, 0x00], -1),  # six bytes, though the number is small
        ([1, 0x80], -1),
        ([0, 1], -1),
        ([3, 1, 1, 1], -1),
        ([], -1),
    ],
)
def test_what_is_no_ngram_of_u32_is_refused(data, used):
    for module in (native_tokens, reference_tokens):
        tokens, lengths = np.zeros((1, 2), np.uint32), np.zeros(1, np.uint8)
        assert module.decode_ngrams(np.array(data, np.uint8), tokens, lengths) == used


# Hashing


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(tokens_u32, min_size=1, max_size=6), min_size=1, max_size=6), st.integers(0, 2**64 - 1))
def test_ids_are_made_alike(ngrams, seed):
    wide = np.zeros((len(ngrams), 6), np.uint32)
    for m, ngram in enumerate(ngrams):
        wide[m, : len(ngram)] = ngram
    lengths = np.array([len(ngram) for ngram in ngrams], np.uint8)
    results = []
    for module in (native_hashing, reference_hashing):
        by_length, whole, mixed = (np.zeros(len(ngrams), np.uint64) for _ in range(3))
        module.ngram_ids(wide, lengths, np.uint64(seed), by_length)
        module.ngram_ids_of_width(wide, np.uint64(seed), whole)
        module.mix_each(by_length, mixed)
        results.append((by_length.tolist(), whole.tolist(), mixed.tolist()))
    assert results[0] == results[1]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.data())
def test_checksums_are_made_alike(content, seed, data):
    pieces = data.draw(st.lists(st.tuples(st.integers(0, len(content)), st.integers(0, len(content))), max_size=5))
    starts = np.array([min(pair) for pair in pieces], np.int64)
    sizes = np.array([abs(a - b) for a, b in pieces], np.int64)
    seeds = np.full(len(pieces), seed, np.uint64)
    buffer = np.frombuffer(content, np.uint8)
    out = [np.zeros(len(pieces), np.uint32) for _ in range(2)]
    native_hashing.checksum_pieces(buffer, starts, sizes, seeds, out[0])
    reference_hashing.checksum_pieces(buffer, starts, sizes, seeds, out[1])
    assert out[0].tolist() == out[1].tolist()


# Packing


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_rows_are_gathered_and_stored_the_same(row_bytes, count, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (12, row_bytes)).astype(np.uint8)
    addresses = rows.ctypes.data + row_bytes * rng.integers(0, 12, count)
    seeds = rng.integers(0, 2**64, count, dtype=np.uint64)
    results = []
    for module in (native_packing, reference_packing):
        gathered = np.full(count * row_bytes + 5, 9, np.uint8)
        module.gather_rows(addresses, row_bytes, gathered)
        stored = np.full(count * (row_bytes + 4) + 5, 9, np.uint8)
        sums = np.zeros(count, np.uint32)
        module.store_rows(addresses, row_bytes, seeds, stored, sums)
        results.append((gathered.tolist(), stored.tolist(), sums.tolist()))
    assert results[0] == results[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(0, 80), max_size=20), st.integers(0, 2**32 - 1))
def test_frames_are_stored_the_same(row_bytes, sizes, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, len(sizes) * row_bytes).astype(np.uint8)
    frames = rng.integers(0, 256, sum(sizes)).astype(np.uint8)
    seeds = rng.integers(0, 2**64, len(sizes), dtype=np.uint64)
    results = []
    for module in (native_packing, reference_packing):
        stored = np.full(len(sizes) * (row_bytes + 4) + 5, 9, np.uint8)
        lengths, sums = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.uint32)
        size = module.store_frames(frames, np.array(sizes, np.int64), rows, row_bytes, seeds, stored, lengths, sums)
        results.append((size, stored.tolist(), lengths.tolist(), sums.tolist()))
    assert results[0] == results[1]
    assert results[0][2] == [min(size, row_bytes) for size in sizes]


def test_a_run_of_reads_fits_its_buffer_whatever_the_offsets_say():
    """Of two rows that begin at one place the longer one counts."""
    line = np.zeros((1, native_index.NUM_COLUMNS), np.int64)
    line[0, native_index.ROW_BYTES], line[0, native_index.ROWS_FD] = 65_535, 5
    lengths, limit = np.array([65_535, 10]), native_rows._SPAN_BYTES
    lines, places, status = np.zeros(2, np.int32), np.full(2, 4096), np.zeros(2, np.uint8)
    last, end = native_rows._run_end(line, np.arange(2), lines, places, lengths, status, 0, 0, 0, limit)
    assert last == 1 or end - 4096 <= limit
