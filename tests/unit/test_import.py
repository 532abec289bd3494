"""Import of shipped tables: in place and packed give the checkpoint's rows, and a source that changed is an error."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TOKEN_MAP, WRITERS, bf16_values, save, write_engram, write_longcat, write_qwen
from click.testing import CliRunner
from helpers import flip

import ngramstore as ngs
from ngramstore import files
from ngramstore.cli.compact import command as compact
from ngramstore.cli.verify import command as verify_command
from ngramstore.errors import DamagedRows, DamagedStore, FormatError, IncompleteStore, NgramStoreError, UsageError
from ngramstore.keys import keys_from_spec
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.layers.manifest import MANIFEST_NAME, read_manifest
from ngramstore.store.repair.check import verify

pytestmark = pytest.mark.filterwarnings("error")
every_model = pytest.mark.parametrize("model", list(WRITERS))


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "checkpoint", tmp_path / "store"


def opened(path, **options):
    return ngs.open(path, trust_external=True, **options)


@every_model
@pytest.mark.parametrize("how", [{}, {"checksums": True}, {"pack": True}, {"pack": True, "compression": "zstd"}])
def test_every_row_is_the_checkpoint_s_bit_for_bit(paths, model, how):
    wanted = WRITERS[model](paths[0])
    report = import_checkpoint(*paths, **how)
    assert report.model == model and report.num_rows == len(wanted) and report.rms_error == 0
    with opened(paths[1], cache_bytes=40 * 600) as store:
        order = np.random.default_rng(5).permutation(len(wanted))
        for _ in range(2):
            assert (store.rows_encoded(order) == wanted[order]).all()
        assert store.verify() == []
    with opened(paths[1], resident=True) as store:
        assert (store.rows_encoded(order) == wanted[order]).all()


def test_values_of_e4m3_rows_with_block_scales(paths):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    wanted = write_engram(paths[0])
    import_checkpoint(*paths)
    values = wanted[:, :256].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    values *= np.repeat(np.ldexp(np.float32(1), wanted[:, 256:].astype(int) - 127), 32, axis=1)
    with opened(paths[1]) as store:
        assert (store.rows(np.arange(len(wanted))) == values).all()


def test_values_of_e4m3_rows_with_a_table_scale_and_of_bf16_rows(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    wanted = write_qwen(tmp_path / "fp8")
    import_checkpoint(tmp_path / "fp8", tmp_path / "a")
    scale = bf16_values(np.array([0x3951], np.uint16))
    with opened(tmp_path / "a") as store:
        values = wanted.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        assert (store.rows(np.arange(len(wanted))) == values).all()
    wanted = write_qwen(tmp_path / "bf16", "BF16")
    import_checkpoint(tmp_path / "bf16", tmp_path / "b")
    with opened(tmp_path / "b") as store:
        assert (store.rows(np.arange(len(wanted))) == bf16_values(wanted.view(np.uint16))).all()


@every_model
def test_the_frozen_keys_lead_to_rows_of_the_store(paths, model):
    wanted = WRITERS[model](paths[0])
    import_checkpoint(*paths, token_map=TOKEN_MAP if model == "engram" else None)
    with opened(paths[1]) as store:
        keys = keys_from_spec(store.metadata["keys"], token_map=TOKEN_MAP if model == "engram" else None)
        numbers = keys.rows(np.arange(12).reshape(2, 6))
        assert (store.rows_encoded(numbers) == wanted[numbers]).all()
        assert keys.num_rows == len(store) == len(wanted)


def test_rows_in_place_copy_nothing(paths):
    write_qwen(paths[0])
    report = import_checkpoint(*paths)
    assert report.is_in_place and not report.is_checked and report.disk_bytes == 0
    assert sorted(os.listdir(paths[1])) == ["LOCK", "MANIFEST"]


@pytest.mark.parametrize("checksums", [False, True])
def test_bytes_read_are_counted_as_they_are_read(paths, checksums):
    wanted = write_engram(paths[0])
    import_checkpoint(*paths, checksums=checksums)
    with opened(paths[1]) as store:
        store.rows([[1, 2], [2, 300]])
        stats = store.stats()
        assert stats["rows_read"] == 3 and stats["bytes_read"] == 3 * (264 + 4 * checksums)
        assert stats["external_bytes"] == sum(file.stat().st_size for file in paths[0].glob("*.safetensors"))
        assert len(wanted) == stats["rows"]


def test_a_manifest_that_names_other_files_is_refused_unless_trusted(paths):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    with pytest.raises(UsageError, match=r"outside of it, such as .*model.safetensors\n.*trust_external=True"):
        ngs.open(paths[1])
    with pytest.raises(UsageError, match="outside of it"):
        ngs.open(paths[1], mode="rw")


def test_a_packed_store_needs_no_trust_and_no_checkpoint(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths, pack=True)
    (paths[0] / "model.safetensors").unlink()
    with ngs.open(paths[1]) as store:
        assert (store.rows_encoded([5, 900]) == wanted[[5, 900]]).all()


@pytest.mark.parametrize(
    ("codec", "most"), [("int8", 0.01), ("int4", 0.15), ("f32", 0.0), ({"name": "e4m3", "block": 32}, 0.04)]
)
def test_another_codec_keeps_rows_within_its_bound_and_reports_the_error(paths, codec, most):
    wanted = write_longcat(paths[0])
    report = import_checkpoint(*paths, pack=True, codec=codec)
    truth = bf16_values(wanted.view(np.uint16))
    with ngs.open(paths[1]) as store:
        rows = store.rows(np.arange(len(wanted)))
        assert (np.abs(rows - truth) <= store.spec.codec.error_bound(truth)).all()
    assert report.rms_error <= most * report.rms_value
    assert (report.rms_error == 0) == (codec == "f32")
    assert abs(report.rms_value - 1) < 0.05


def test_compressible_rows_are_packed_smaller(paths):
    write_longcat(paths[0])
    tensors = {
        f"model.ngram_embeddings.embedders.{i}.weight": ("BF16", np.full((81 + 2 * i, 256), 0x3F80, np.uint16))
        for i in range(12)
    }
    save(paths[0] / "model.safetensors", tensors)
    report = import_checkpoint(*paths, pack=True)
    assert report.is_compressed and report.zstd_saves > 0.9 and report.disk_bytes < 1104 * 512 / 2


@every_model
def test_replaced_rows_live_in_the_overlay_and_the_source_stays(paths, model):
    wanted = WRITERS[model](paths[0])
    import_checkpoint(*paths)
    before = {path: path.read_bytes() for path in paths[0].iterdir()}
    with opened(paths[1], mode="rw") as store:
        store.put_encoded([3, 70], wanted[[70, 3]])
        assert (store.rows_encoded([3, 70, 4]) == wanted[[70, 3, 4]]).all()
    with opened(paths[1]) as store:
        assert (store.rows_encoded([3, 70, 4]) == wanted[[70, 3, 4]]).all()
    assert {path: path.read_bytes() for path in paths[0].iterdir()} == before


def test_compaction_copies_the_rows_into_the_store(paths):
    wanted = write_qwen(paths[0])
    import_checkpoint(*paths, checksums=True)
    with opened(paths[1], mode="rw") as store:
        store.put_encoded([9], wanted[[1]])
        store.compact()
    assert not list(paths[1].glob("*.sums"))
    wanted[9] = wanted[1]
    with ngs.open(paths[1]) as store:
        assert (store.rows_encoded(np.arange(len(wanted))) == wanted).all() and store.verify() == []


def test_compaction_copies_rows_in_place_that_nobody_has_changed(paths):
    wanted = write_qwen(paths[0])
    import_checkpoint(*paths)
    done = CliRunner().invoke(compact, [str(paths[1]), "--trust-external"])
    assert done.exit_code == 0, done.output
    assert f"{len(wanted):,} rows" in done.output
    assert "nothing to merge" not in done.output
    with ngs.open(paths[1]) as store:
        assert store.stats()["external_bytes"] == 0
        assert (store.rows_encoded(np.arange(len(wanted))) == wanted).all() and store.verify() == []
        generation = store.generation
    assert "nothing to merge" in CliRunner().invoke(compact, [str(paths[1])]).output
    with ngs.open(paths[1]) as store:
        assert store.generation == generation


def test_a_pickled_handle_and_a_backup_stay_readable(paths, tmp_path):
    wanted = write_qwen(paths[0])
    import_checkpoint(*paths, checksums=True)
    with opened(paths[1]) as store:
        store.backup(tmp_path / "copy")
        with pickle.loads(pickle.dumps(store)) as again:
            assert (again.rows_encoded([8]) == wanted[[8]]).all()
    with opened(tmp_path / "copy") as copy:
        assert (copy.rows_encoded([8]) == wanted[[8]]).all()


# A source that changes


def source_of(store_path: Path) -> Path:
    return Path(read_manifest(store_path).base.sources[0].path)


@pytest.mark.parametrize("checksums", [False, True])
def test_a_source_that_is_cut_while_it_is_served_is_an_error(paths, checksums):
    write_longcat(paths[0])
    import_checkpoint(*paths, checksums=checksums)
    with opened(paths[1], cache_bytes=0) as store:
        store.rows([0])
        os.truncate(source_of(paths[1]), 5000)
        wanted = DamagedRows if checksums else DamagedStore
        with pytest.raises(wanted, match=r"model.safetensors.*(file ends inside|was changed while)"):
            store.rows([700])
    with pytest.raises(DamagedStore, match="its size is 5000, wanted"):
        opened(paths[1])


def test_a_source_that_is_written_to_while_it_is_served_is_an_error(paths):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    source = source_of(paths[1])
    with opened(paths[1], cache_bytes=0) as store:
        store.rows([0])
        flip(source, -3)
        os.utime(source, ns=(1, store._view.base.sources[0].mtime_ns + 1))
        with pytest.raises(DamagedStore, match="was changed while it was being served"):
            store.rows([5])


def test_with_checksums_a_changed_row_is_named_and_the_others_are_served(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    lenient = opened(paths[1], cache_bytes=0, on_damage="missing")
    with opened(paths[1], cache_bytes=0) as store:
        place = int(store._view.base.places(41, 1)[0][0])
        flip(source_of(paths[1]), place + 17)
        with pytest.raises(DamagedRows, match=r"model.safetensors: row 41 at byte") as caught:
            store.rows([40, 41])
        assert caught.value.keys == [41]
        assert (store.rows_encoded([40, 42]) == wanted[[40, 42]]).all()
    with lenient:
        assert (lenient.rows([41]) == 0).all()
        found = np.zeros((2, 2), np.bool_)
        rows = lenient.rows([[40, 41], [41, 42]], found=found)
        assert found.tolist() == [[True, False], [False, True]]
        assert not rows[~found].any() and rows[found].any(axis=1).all()
        lenient.rows_encoded([[42, 41], [41, 40]], found=found)
        assert found.tolist() == [[True, False], [False, True]]
        for wrong in (np.zeros(2, np.bool_), np.zeros((2, 2), np.uint8), [[True] * 2] * 2):
            with pytest.raises(UsageError, match="found must be"):
                lenient.rows([[40, 41], [41, 42]], found=wrong)


def test_a_source_replaced_by_another_file_keeps_serving_the_old_rows_and_does_not_open_again(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths)
    source = source_of(paths[1])
    with opened(paths[1], cache_bytes=0) as store:
        other = bytearray(source.read_bytes())
        other[-4000:] = bytes(4000)
        (paths[0] / "new").write_bytes(other)
        os.replace(paths[0] / "new", source)
        assert (store.rows_encoded(np.arange(len(wanted))) == wanted).all()
    with pytest.raises(DamagedStore, match=r"is not the file that was imported: its (inode|time)"):
        opened(paths[1])


@pytest.mark.parametrize("checksums", [False, True])
def test_a_fine_tune_with_the_same_header_size_and_time_is_refused(paths, checksums):
    write_longcat(paths[0])
    import_checkpoint(*paths, checksums=checksums)
    source = source_of(paths[1])
    times = source.stat()
    data = bytearray(source.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = bytes(byte ^ 4 for byte in data[start:])
    with open(source, "r+b") as file:
        file.write(data)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedStore, match="its digest of sampled pages"):
        opened(paths[1])


def test_another_header_of_the_same_size_is_refused(paths):
    write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    flip(source_of(paths[1]), 30)
    with pytest.raises(DamagedStore, match="its digest of the header"):
        opened(paths[1])


def test_with_checksums_a_moved_copy_of_the_source_is_fine(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    source = source_of(paths[1])
    data = source.read_bytes()
    source.unlink()
    with pytest.raises(DamagedStore, match="is missing"):
        opened(paths[1])
    source.write_bytes(data)
    with opened(paths[1]) as store:
        assert (store.rows_encoded([1]) == wanted[[1]]).all()


def test_a_source_that_is_no_file_is_refused_without_waiting(paths):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    source = source_of(paths[1])
    source.unlink()
    os.mkfifo(source)
    with pytest.raises(DamagedStore, match="not a regular file"):
        opened(paths[1])


# A manifest that lies


def rewritten(store_path: Path, changed) -> None:
    import zlib

    body = (store_path / MANIFEST_NAME).read_bytes().partition(b"\n")[2]
    value = json.loads(body)
    changed(value["base"])
    body = json.dumps(value).encode()
    head = b"ngramstore manifest 1 %08x %d\n" % (zlib.crc32(body), len(body))
    (store_path / MANIFEST_NAME).write_bytes(head + body)


@pytest.mark.parametrize(
    "lie",
    [
        lambda base: base.update(num_rows=5),
        lambda base: base["external"]["segments"][0].__setitem__(0, 10**9),
        lambda base: base["external"]["segments"][0][1][0].__setitem__(0, 7),
        lambda base: base["external"]["segments"][0][1][0].__setitem__(1, -8),
        lambda base: base["external"]["segments"][0][1][0].__setitem__(2, 0),
        lambda base: base["external"]["segments"][0][1][0].__setitem__(2, 1 << 50),
        lambda base: base["external"]["segments"][0][1].extend([[0, 0, 1]] * 2),
        lambda base: base["external"]["segments"].clear(),
        lambda base: base["external"]["sources"].clear(),
        lambda base: base["external"]["sources"][0].update(path="model.safetensors"),
        lambda base: base["external"]["sources"][0].update(path=5),
        lambda base: base["external"]["sources"][0].update(inode=1.5e300),
        lambda base: base["external"]["sources"][0].update(bytes=1 << 61),
        lambda base: base["external"].update(sums={"name": "../base-000001.sums", "bytes": 5000, "header_crc": 1}),
        lambda base: base.update(external=None),
        lambda base: base.update(external=[]),
    ],
)
def test_a_manifest_that_lies_about_rows_in_place_is_a_format_error(paths, lie):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    rewritten(paths[1], lie)
    with pytest.raises(FormatError):
        opened(paths[1])


def test_every_flip_in_the_sidecar_s_sums_is_an_error_of_that_row(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    sums = paths[1] / "base-000001.sums"
    for row in (0, 500, len(wanted) - 1):
        flip(sums, 4096 + 4 * row + 2)
        with opened(paths[1], cache_bytes=0) as store, pytest.raises(DamagedRows) as caught:
            store.rows(np.arange(len(wanted)))
        assert caught.value.keys == [row]
        flip(sums, 4096 + 4 * row + 2)
    os.truncate(sums, sums.stat().st_size - 4)
    with pytest.raises(DamagedStore, match=r"sums has .* bytes, the manifest says"):
        opened(paths[1])


# Checkpoints that cannot be imported


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config.get("text_config") or config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("model", "spoil", "message"),
    [
        ("longcat", lambda f: edit(f, vocab_size=41), r"embedders.0 has 81 rows in 1 tensors, its config gives 83"),
        ("longcat", lambda f: edit(f, hidden_size=1536), r"BF16 \[81, 256\].* expected rows of 128 values"),
        ("longcat", lambda f: edit(f, hidden_size=3073), "not a multiple of its 12 heads"),
        ("longcat", lambda f: (f / "model.safetensors").unlink(), "holds no .safetensors file"),
        ("longcat", lambda f: (f / "config.json").unlink(), "has no config.json"),
        ("longcat", lambda f: (f / "config.json").write_text("[1]"), "expected a JSON object"),
        ("longcat", lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        ("longcat", lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "model_type 'llama'"),
        ("qwen_ple", lambda f: (f / "model-00002-of-00003.safetensors").unlink(), r"found 11 shards .*expected 16"),
        ("qwen_ple", lambda f: edit(f, split_ngram_parts=8), "found 16 shards .* expected 8"),
        ("qwen_ple", lambda f: edit(f, split_ngram_parts=1 << 61), "found 16 shards .* expected 2305843009213693952"),
        ("qwen_ple", lambda f: edit(f, ngram_vocab_size_base=60), "its config gives"),
        ("qwen_ple", lambda f: edit(f, ple_layer_ids=[3]), "0 tensors are named ...layers.2.ple"),
        ("engram", lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "0 tensors are named"),
        ("engram", lambda f: edit(f, engram_layer_ids=[1, 2]), "0 tensors are named ...layers.2.engram.embed.weight"),
        ("engram", lambda f: edit(f, engram_num_embeddings=[1, 2]), r"engram_num_embeddings = \[1, 2\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(paths, model, spoil, message):
    WRITERS[model](paths[0])
    spoil(paths[0])
    with pytest.raises(UsageError, match=message):
        import_checkpoint(*paths)
    assert not (paths[1] / MANIFEST_NAME).exists()


STEM = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("extra", {f"{STEM}.shard_3.weight": ("F8_E4M3", np.zeros((2, 160), np.uint8))}, "is in .* and in"),
        (
            "other",
            {f"base_model.{STEM}.shard_3.weight": ("F8_E4M3", np.zeros((2, 160), np.uint8))},
            "shard_3.weight .* are both shard 3",
        ),
        ("model-00003-of-00003", {f"{STEM}.shard_2.weight": ("I8", np.zeros((2, 160), np.int8))}, "found 12 shards"),
        ("model-00002-of-00003", None, "of type BF16, F8_E4M3"),
    ],
)
def test_tensors_of_another_kind_are_named(paths, name, tensors, message):
    rows = write_qwen(paths[0])
    each = len(rows) // 16
    if tensors is None:
        shards = [shard for shard in range(16) if shard % 3 == 1]
        tensors = {f"{STEM}.shard_{shard}.weight": ("BF16", np.zeros((each, 160), np.uint16)) for shard in shards}
    save(paths[0] / f"{name}.safetensors", tensors)
    with pytest.raises(UsageError, match=message):
        import_checkpoint(*paths)


def test_a_missing_file_of_the_index_is_named(paths):
    write_qwen(paths[0])
    index = {"weight_map": {f"{STEM}.shard_0.weight": "model-00009-of-00009.safetensors"}}
    (paths[0] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"model-00009-of-00009.safetensors is missing.*shard_0"):
        import_checkpoint(*paths)


def test_a_file_that_is_no_safetensors_is_a_format_error(paths):
    write_longcat(paths[0])
    (paths[0] / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FormatError, match="is not a safetensors file"):
        import_checkpoint(*paths)


def test_codecs_and_checksums_are_choices_of_one_way_only(paths):
    write_longcat(paths[0])
    with pytest.raises(UsageError, match="add pack=True"):
        import_checkpoint(*paths, codec="int8")
    with pytest.raises(UsageError, match="checksums with pack"):
        import_checkpoint(*paths, pack=True, checksums=True)
    for compression in ("zstd", "none"):
        with pytest.raises(UsageError, match=f"compression='{compression}' without pack"):
            import_checkpoint(*paths, compression=compression)
    assert not paths[1].exists()


def test_a_directory_that_is_taken_or_half_made_is_left_alone(paths):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    with pytest.raises(UsageError, match="already holds a store"):
        import_checkpoint(*paths)
    (paths[1] / MANIFEST_NAME).unlink()
    (paths[1] / "BUILDING").write_text("")
    with pytest.raises(IncompleteStore):
        import_checkpoint(*paths)
    import_checkpoint(*paths, restart=True)


def test_codes_that_are_no_numbers_are_kept_and_refused_by_other_codecs(paths):
    wanted = write_qwen(paths[0]).copy()
    for path in sorted(paths[0].glob("*.safetensors"))[:2]:
        path.write_bytes(path.read_bytes()[:-160] + bytes([0x7F]) * 160)
    report = import_checkpoint(*paths, pack=True)
    assert report.rms_error == 0 and 0 < report.rms_value < 1
    with ngs.open(paths[1]) as store:
        assert (store.rows_encoded(np.arange(len(wanted))) == 0x7F).any()
    with pytest.raises(UsageError, match=r"row \d+, column \d+: nan"):
        import_checkpoint(paths[0], paths[1].with_name("b"), pack=True, codec="int8")
    assert os.listdir(paths[1].with_name("b")) == ["LOCK"]


@pytest.mark.parametrize("how", [{}, {"checksums": True}, {"pack": True}])
def test_an_import_that_fails_at_any_operation_leaves_nothing_or_all_of_it(paths, quick_path, how, monkeypatch):
    wanted = write_longcat(paths[0])
    for nth in range(100):
        out, count = quick_path / f"out{nth}", 0

        def fail(operation, path, nth=nth):
            nonlocal count
            count += 1
            if count == nth + 1:
                raise OSError(5, f"injected into {operation}", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", fail)
            try:
                import_checkpoint(paths[0], out, **how)
            except (OSError, NgramStoreError):
                pass
        if (out / MANIFEST_NAME).exists():
            with opened(out) as store:
                assert (store.rows_encoded([7, 900]) == wanted[[7, 900]]).all()
        else:
            import_checkpoint(paths[0], out, restart=True, **how)
        if count <= nth:
            break
    assert 3 < nth < 99


def test_the_command_imports_and_reports(paths):
    from importlib import import_module

    write_qwen(paths[0])
    command = import_module("ngramstore.cli.import").command
    result = CliRunner().invoke(
        command, [str(paths[0]), str(paths[1]), "--pack", "--codec", "int8", "--json", "--quiet"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == "qwen_ple" and report["codec"]["name"] == "int8" and report["rms_error"] > 0
    result = CliRunner().invoke(command, [str(paths[0]), str(paths[1].with_name("b")), "--checksums", "--quiet"])
    assert result.exit_code == 0 and "trust_external=True" in result.stdout and "verified" in result.stdout


def test_checksums_made_and_verified_in_many_chunks_are_those_of_the_rows(paths, monkeypatch):
    monkeypatch.setattr("ngramstore.store.imports.job._CHUNK_BYTES", 1)  # 64 rows
    monkeypatch.setattr("ngramstore.store.repair.check._CHUNK_BYTES", 1)
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    with opened(paths[1]) as store:
        assert (store.rows_encoded(np.arange(len(wanted))) == wanted).all()
        assert store.verify() == []
    sums, known = next(paths[1].glob("*.sums")), read_manifest(paths[1]).base.num_rows
    flip(sums, 4096 + 4 * (known - 1))  # of the last row
    with opened(paths[1]) as store:
        assert [fault for fault in store.verify() if f"row {known - 1}, read in place" in fault]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_a_checkpoint_that_may_not_be_opened_is_not_taken_for_damage(paths, monkeypatch, code):
    write_longcat(paths[0])
    import_checkpoint(*paths)
    real = os.open

    def opened(path, *given, **options):
        if str(path).endswith(".safetensors"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *given, **options)

    monkeypatch.setattr(os, "open", opened)
    for use in (opened_store, verify):
        with pytest.raises(UsageError, match=r"model\.safetensors"):
            use(paths[1])


def opened_store(path) -> None:
    ngs.open(path, trust_external=True)


def test_a_changed_row_that_a_table_in_place_does_not_have_is_a_fault(paths):
    wanted = write_longcat(paths[0])
    import_checkpoint(*paths)
    with opened(paths[1], mode="rw") as store:
        store._writer.put_rows(np.array([len(wanted)]), store.rows_encoded([0]))
        store.flush()
    assert [fault.what for fault in verify(paths[1])] == ["the overlay holds rows that the base does not have"]


def test_damage_of_rows_in_place_leads_to_what_can_be_done(paths):
    """`repair` takes no such store."""
    write_longcat(paths[0])
    import_checkpoint(*paths, checksums=True)
    with opened(paths[1], cache_bytes=0) as store:
        flip(paths[0] / "model.safetensors", int(store._view.base.places(3, 1)[0][0]) + 5)
        with pytest.raises(DamagedRows) as caught:
            store.rows([1, 3])
    said = CliRunner().invoke(verify_command, [str(paths[1])])
    for text in (caught.value.hint, said.output):
        assert "put the checkpoint" in text and ("repair" not in text or "takes no such store" in text)


def test_a_table_without_its_scales_is_told_their_name(paths):
    write_engram(paths[0])
    save(paths[0] / "model-00002-of-00002.safetensors", {"other": ("F32", np.zeros(3, np.float32))})
    with pytest.raises(UsageError, match="has no scales") as caught:
        import_checkpoint(*paths)
    assert "layers.1.engram.embed.scale beside it" in caught.value.hint
