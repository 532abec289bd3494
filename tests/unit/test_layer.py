"""An open layer compares what each of its files says of itself with the manifest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import ngramstore
from ngramstore.errors import DamagedStore
from ngramstore.store.layers.manifest import read_manifest
from ngramstore.store.layers.packed_layer import PackedLayer


def test_files_with_another_number_of_rows_than_the_manifest_says_are_refused(tmp_path):
    """The index of 40 rows fills the same pages as one of 32: its own sizes cannot tell."""
    with ngramstore.build(tmp_path / "store", dim=4, max_n=2) as build:
        build.add(np.arange(80).reshape(40, 2), np.ones((40, 4), np.float32))
    manifest = read_manifest(tmp_path / "store")
    stamp = manifest.stamp(manifest.base_generation)
    PackedLayer(tmp_path / "store", manifest.base, stamp, manifest.spec, 1, is_keyed=True, lock_index=False)
    for wrong in (32, 39, 41):
        entry = replace(manifest.base, num_rows=wrong)
        with pytest.raises(DamagedStore, match=f"holds 40 rows, the manifest says {wrong}"):
            PackedLayer(tmp_path / "store", entry, stamp, manifest.spec, 1, is_keyed=True, lock_index=False)
