"""A layer of more or fewer rows than it was begun for is not finished, also where Python leaves assertions out (-O)."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys
from pathlib import Path
import numpy as np
from ngramstore.codec.registry import codec_from_spec
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_writer import LayerWriter
from ngramstore.store.layers.manifest import Spec

path, ids, stamp = Path(sys.argv[1]), np.arange(1, 3, dtype=np.uint64), FileStamp(bytes(16), 1)
"""
LAYER = """
spec = Spec(addressing="ngram", dim=4, max_n=1, codec=codec_from_spec({"name": "f32"}, 4))
writer = LayerWriter(path, "base", 1, spec, 3, is_keyed=True)
writer.add(Batch(ids, np.zeros((2, 16), np.uint8), np.ones((2, 1), np.uint32), np.ones(2, np.uint8)))
writer.finish(stamp)
"""
INDEX = """
builder = IndexBuilder(IndexPlan(3, is_keyed=True, is_sized=False))
builder.add(ids)
builder.write(path / "base-000001.index", stamp)
"""


@pytest.mark.parametrize("option", [(), ("-O",)], ids=["with assertions", "without"])
@pytest.mark.parametrize("act", [LAYER, INDEX], ids=["layer", "index"])
def test_two_rows_are_no_layer_of_three(tmp_path, act, option):
    child = subprocess.run(
        [sys.executable, *option, "-c", BEGIN + act, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "AssertionError: 2 rows were added, 3 were announced" in child.stderr
