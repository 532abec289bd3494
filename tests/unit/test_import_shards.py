"""What holds no table need not be whole or there; what is there twice, the index settles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import QWEN, e4m3_codes, save, write_qwen

import ngramstore as ngs
from ngramstore.errors import FormatError, UsageError
from ngramstore.keys import keys_from_config
from ngramstore.store.imports.importing import import_checkpoint

STEM = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"
FILES = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def checkpoint(tmp_path):
    write_qwen(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def write_index(checkpoint: Path, **more: str) -> None:
    """An index of what `write_qwen` wrote, and `more` tensors."""
    names = {f"{STEM}.shard_{shard}.weight": FILES[shard % 3] for shard in range(16)}
    names |= {f"{STEM}.weight_scale": FILES[2], "lm_head.weight": "model-00004.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | more}))


def rows_of(checkpoint: Path) -> np.ndarray:
    import_checkpoint(checkpoint, checkpoint.with_name("store"))
    with ngs.open(checkpoint.with_name("store"), trust_external=True) as store:
        return store.rows_encoded(np.arange(len(store)))


def test_a_tensor_of_no_table_may_be_in_two_files(checkpoint):
    for name in ("a", "b"):
        save(checkpoint / f"{name}.safetensors", {"lm_head.weight": ("F32", np.zeros(3, np.float32))})
    assert len(rows_of(checkpoint))


def test_of_a_tensor_in_two_files_the_one_counts_that_the_index_names(checkpoint, tmp_path):
    wanted = write_qwen(tmp_path / "again")
    other = e4m3_codes(np.random.default_rng(9), (len(wanted) // 16, 160))
    for name in ("a", "b", "z"):  # read before and behind the real one
        save(checkpoint / f"{name}.safetensors", {f"{STEM}.shard_3.weight": ("F8_E4M3", other)})
    with pytest.raises(UsageError, match=r"shard_3.weight is in a.safetensors and in b.safetensors and in model-00001"):
        import_checkpoint(checkpoint, tmp_path / "no")
    write_index(checkpoint)
    assert (rows_of(checkpoint) == wanted).all()


@pytest.mark.parametrize("has_index", [True, False])
def test_a_link_to_nothing_is_a_file_that_is_missing(checkpoint, has_index):
    """As a cache of downloads holds it before the file has come."""
    (checkpoint / "model-00004.safetensors").symlink_to("../blobs/5")
    if has_index:
        write_index(checkpoint)
    assert len(rows_of(checkpoint))


def test_a_link_to_nothing_that_should_hold_a_table_is_named(checkpoint, tmp_path):
    (checkpoint / FILES[1]).unlink()
    (checkpoint / FILES[1]).symlink_to("../blobs/5")
    with pytest.raises(UsageError, match="found 11 shards"):
        import_checkpoint(checkpoint, tmp_path / "store")
    write_index(checkpoint)
    with pytest.raises(UsageError, match=rf"{FILES[1]} is missing; the index says it holds .*shard_1"):
        import_checkpoint(checkpoint, tmp_path / "store")
    for name in FILES:
        (checkpoint / name).unlink(missing_ok=True)
        os.symlink("nothing", checkpoint / name)
    with pytest.raises(UsageError, match=r"holds no .safetensors file"):
        import_checkpoint(checkpoint, tmp_path / "store")


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]"], ids=["", "ff", "[]"])
def test_a_file_cut_short_stops_only_an_import_that_may_need_it(checkpoint, data):
    (checkpoint / "model-00004.safetensors").write_bytes(data)
    with pytest.raises(FormatError):
        rows_of(checkpoint)
    write_index(checkpoint, more="model-00004.safetensors", **{f"{STEM}.shard_15.weight": "model-00004.safetensors"})
    with pytest.raises(FormatError):
        rows_of(checkpoint)
    write_index(checkpoint)
    assert len(rows_of(checkpoint))


def test_tables_of_two_scales_are_refused_without_naming_a_way_there_is_not(tmp_path):
    config = {"model_type": "qwen4_exp", "text_config": QWEN["text_config"] | {"ple_layer_ids": [2, 3]}}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for layer, table in zip((1, 2), keys_from_config(config).tables, strict=True):
        stem = STEM.replace("layers.1", f"layers.{layer}")
        tensors[f"{stem}.weight"] = ("F8_E4M3", np.zeros((table.num_rows, 160), np.uint8))
        tensors[f"{stem}.weight_scale"] = ("BF16", np.array([0x3950 + layer], np.uint16))
    save(folder / "model.safetensors", tensors)
    with pytest.raises(UsageError, match="tables with different scales") as refused:
        import_checkpoint(folder, tmp_path / "store")
    assert "cannot import such a model in FP8" in refused.value.hint
