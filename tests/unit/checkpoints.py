"""Small checkpoints with the real tensor names, types and row sizes, and what their rows mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TOKEN_MAP = np.arange(40) % 10
ENGRAM = {
    "model_type": "deepseek_v41",
    "engram_layer_ids": [1, 14],
    "engram_max_ngram_size": 4,
    "engram_vocab_size": 20,
    "engram_n_heads": 2,
    "engram_head_dim": 256,
    "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 10,
}
QWEN = {
    "model_type": "qwen4_exp",
    "text_config": {
        "vocab_size": 500,
        "ngram_size": 3,
        "heads_per_ngram": 8,
        "ngram_vocab_size_base": 50,
        "ple_embed_dim": 2560,
        "ple_layer_ids": [2],
        "make_ngram_vocab_size_divisible_by": 128,
        "split_ngram_parts": 16,
        "eos_token_id": 499,
    },
}
LONGCAT = {
    "model_type": "longcat_flash_ngram",
    "vocab_size": 40,
    "hidden_size": 3072,
    "ngram_vocab_size_ratio": 2,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "eos_token_id": 2,
}


def save(path: Path, tensors: dict[str, tuple[str, np.ndarray]], metadata: str = "pt") -> None:
    """A safetensors file; arrays hold the bits."""
    header, at = {"__metadata__": {"format": metadata}}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for _, a in tensors.values()))


def e4m3_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Codes that are no NaN."""
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    return np.where(codes & 127 == 127, 0, codes).astype(np.uint8)


def bf16_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_engram(folder: Path) -> np.ndarray:
    """Two layers in two files, the scales of layer 1 in the file of layer 14. Returns the rows (N, 264) as stored."""
    from ngramstore.keys import keys_from_config

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ENGRAM))
    rng = np.random.default_rng(1)
    files: list[dict] = [{"other": ("F32", np.zeros(3, np.float32))}, {}]
    rows = []
    for i, table in enumerate(keys_from_config(ENGRAM).tables):
        codes = e4m3_codes(rng, (table.num_rows, 256))
        scales = rng.integers(100, 130, (table.num_rows, 8)).astype(np.uint8)
        stem = f"layers.{[1, 14][i]}.engram.embed"
        files[i][f"{stem}.weight"] = ("F8_E4M3", codes)
        files[1][f"{stem}.scale"] = ("F8_E8M0", scales)
        rows.append(np.concatenate([codes, scales], axis=1))
    for i, tensors in enumerate(files):
        save(folder / f"model-0000{i + 1}-of-00002.safetensors", tensors)
    return np.concatenate(rows)


def write_qwen(folder: Path, dtype: str = "F8_E4M3") -> np.ndarray:
    """16 shards of one table over three files, not in order. Returns the rows (N, 160 or 320) as stored."""
    from ngramstore.keys import keys_from_config

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    rng = np.random.default_rng(2)
    num_rows = keys_from_config(QWEN).num_rows
    shape = (num_rows, 160)
    table = e4m3_codes(rng, shape) if dtype == "F8_E4M3" else bf16_bits(rng, shape)
    stem = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"
    files: list[dict] = [{}, {}, {}]
    each = num_rows // 16
    for shard in (15, 3, 0, 7, 1, 2, 9, 4, 5, 6, 8, 10, 14, 13, 12, 11):
        files[shard % 3][f"{stem}.shard_{shard}.weight"] = (dtype, table[shard * each : (shard + 1) * each])
    if dtype == "F8_E4M3":
        files[2][f"{stem}.weight_scale"] = ("BF16", np.array([0x3951], np.uint16))  # 1.9932e-4
    for i, tensors in enumerate(files):
        save(folder / f"model-0000{i + 1}-of-00003.safetensors", tensors)
    return table.view(np.uint8).reshape(num_rows, -1)


def write_longcat(folder: Path) -> np.ndarray:
    """Twelve tables in one file. Returns the rows (N, 512) as stored."""
    from ngramstore.keys import keys_from_config

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LONGCAT))
    rng = np.random.default_rng(3)
    tables = {
        f"model.ngram_embeddings.{table.name}.weight": ("BF16", bf16_bits(rng, (table.num_rows, 256)))
        for table in keys_from_config(LONGCAT).tables
    }
    save(folder / "model.safetensors", dict(sorted(tables.items())))  # as strings: 0, 1, 10, 11, 2
    return np.concatenate([array for _, array in tables.values()]).view(np.uint8)


WRITERS = {"engram": write_engram, "qwen_ple": write_qwen, "longcat": write_longcat}
