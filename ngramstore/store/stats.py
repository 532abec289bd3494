"""What a published state of a store holds and costs, as JSON values."""

from __future__ import annotations

from typing import Any

from ngramstore.store.view import View


def stats_of(view: View) -> dict[str, Any]:
    """Of the files alone, without what a writer has not published; `Store.stats` says what each number is."""
    manifest = view.manifest
    spec = manifest.spec
    return {
        "path": str(view.directory),
        "addressing": spec.addressing,
        "rows": manifest.num_rows,
        "dim": spec.dim,
        "max_n": spec.max_n,
        "codec": spec.codec.spec(),
        "row_bytes": spec.codec.row_bytes,
        "compression": "zstd" if manifest.base.is_compressed else "none",
        "generation": manifest.generation,
        "identity": manifest.identity,
        "ngrams_by_length": {n: count for n, count in enumerate(manifest.length_counts) if count},
        "suffix_closed": manifest.suffix_closed,
        "overlay_rows": manifest.overlay.num_rows if manifest.overlay else 0,
        "tombstones": len(view.tombstones) if view.tombstones else 0,
        "file_bytes": {entry.name: entry.file_bytes for entry in manifest.files},
        "total_bytes": sum(entry.file_bytes for entry in manifest.files),
        "external_bytes": sum(manifest.sources.values()),
    }
