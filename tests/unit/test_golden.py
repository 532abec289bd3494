"""Stores written by earlier releases: read exactly, and written again to the same bytes by the format's own release.

The golden files are never written again. A format version without golden stores fails here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zstandard

import ngramstore as ngs
from ngramstore.layout import FORMAT_VERSION

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {1: ["ngram_int8", "ngram_overlay", "ngram_overlay_ids", "ngram_zstd", "rows_e4m3", "rows_overlay"]}
CASES = [(version, name) for version, names in NAMES.items() for name in names]
every_store = pytest.mark.parametrize(("version", "name"), CASES)


def expected_of(version: int, name: str) -> tuple[Path, dict, np.ndarray]:
    """A golden store, what it must answer, and its rows."""
    folder = GOLDEN / f"v{version}"
    return (
        folder / name,
        json.loads((folder / f"{name}.json").read_text()),
        np.load(folder / f"{name}.npy", allow_pickle=False),
    )


def test_every_format_version_has_its_golden_stores():
    assert sorted(NAMES) == list(range(1, FORMAT_VERSION + 1))
    for version, names in NAMES.items():
        folder = GOLDEN / f"v{version}"
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
        for name in names:
            assert (folder / name / "MANIFEST").is_file()
            assert (folder / f"{name}.npy").is_file()


@every_store
@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}, {"resident": True}, {"lock_index": True}], ids=str)
def test_a_golden_store_gives_its_rows_exactly(version, name, options):
    path, expected, rows = expected_of(version, name)
    keys = [tuple(key) for key in expected["keys"]]
    with ngs.open(path, **options) as store:
        assert store.identity == expected["identity"]
        assert len(store) == len(keys)
        if name.startswith("rows"):
            assert (store.rows([key[0] for key in keys]) == rows).all()
            return
        got, found = store.get(keys)
        assert found.all()
        assert (got == rows).all()
        got, found = store.get([tuple(key) for key in expected["absent"]])
        assert not found.any()
        assert not got.any()
        hit = store.lookup(expected["tokens"])
        assert hit.length.tolist() == expected["lengths"]
        row_of = dict(zip(keys, rows, strict=True))
        tokens = expected["tokens"]
        for t, length in enumerate(expected["lengths"]):
            wanted = row_of[tuple(tokens[t + 1 - length : t + 1])] if length else 0
            assert (hit.rows[t] == wanted).all()


@every_store
def test_a_golden_store_lists_what_it_holds(version, name):
    path, expected, rows = expected_of(version, name)
    with ngs.open(path) as store:
        if not store.spec.has_tokens and store.spec.is_ngram:
            with pytest.raises(ngs.errors.FormatError, match="tokens=False"):
                next(iter(store.items()))
            return
        listed = {key if isinstance(key, tuple) else (key,): row for key, row in store.items()}
    assert sorted(listed) == [tuple(key) for key in expected["keys"]]
    assert (np.stack([listed[tuple(key)] for key in expected["keys"]]) == rows).all()


@every_store
def test_a_golden_store_can_be_changed_and_compacted(tmp_path, version, name):
    golden, expected, rows = expected_of(version, name)
    shutil.copytree(golden, tmp_path / "store")
    keys = [tuple(key) for key in expected["keys"]]
    with ngs.open(tmp_path / "store", mode="rw") as store:
        store.put([0] if name.startswith("rows") else keys[:1], rows[1:2])
        store.compact()
    with ngs.open(tmp_path / "store") as store:
        got = store.rows([key[0] for key in keys]) if name.startswith("rows") else store.get(keys)[0]
        assert store.stats()["overlay_rows"] == store.stats()["tombstones"] == 0
    assert (got[1:] == rows[1:]).all()
    assert store.spec.codec.decode(store.spec.codec.encode(rows[1:2])).tolist() == got[:1].tolist()


@every_store
def test_todays_writer_writes_the_same_bytes(tmp_path, version, name):
    if version != FORMAT_VERSION:
        pytest.skip(f"this release writes format {FORMAT_VERSION}")
    golden, expected, _ = expected_of(version, name)
    here = ".".join(map(str, zstandard.ZSTD_VERSION))
    is_compressed = b'"compression": "zstd"' in (golden / "MANIFEST").read_bytes()
    if is_compressed and expected["zstandard"] != here:
        pytest.skip(f"zstd {here} may compress otherwise than {expected['zstandard']}, which wrote the golden store")
    spec = importlib.util.spec_from_file_location("datagen", GOLDEN / "datagen.py")
    datagen = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(datagen)
    datagen.STORES[name](tmp_path / "store")
    written = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if path.name != "LOCK"}
    wanted = {path.name: path.read_bytes() for path in golden.iterdir()}
    assert sorted(written) == sorted(wanted)
    manifests = [json.loads(files.pop("MANIFEST").split(b"\n", 1)[1]) for files in (written, wanted)]
    for manifest in manifests:
        manifest.pop("release")  # the one thing a later release may write differently
    assert manifests[0] == manifests[1]
    assert [file for file in wanted if written[file] != wanted[file]] == []
