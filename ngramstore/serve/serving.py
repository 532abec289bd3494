"""What a handle serves from, as one value: the view with its caches, and the short paths that look-ups may take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ngramstore.serve.few import Few, FewRows
from ngramstore.serve.many import Many
from ngramstore.serve.recorder import Recorder
from ngramstore.serve.resident import Resident
from ngramstore.serve.row_source import RowSource
from ngramstore.store.layers.manifest import Manifest


@dataclass(frozen=True)
class Serving:
    """What look-ups of one view use. A handle replaces it as a whole.

    source: None once the handle is closed. recorder: is told of every row that is asked for. Short paths (docs/design.md): a
    few n-grams, many, rows by number; None where look-ups have to go the long way.
    """

    manifest: Manifest
    source: RowSource | None
    recorder: Recorder | None = None
    few: Few | None = None
    many: Many | None = None
    few_rows: FewRows | None = None

    @classmethod
    def of(cls, source: RowSource, recorder: Recorder | None, counts: np.ndarray, *, is_for_changes: bool) -> Serving:
        """Serve from a source; short paths add to `counts`. They know nothing of unpublished changes, and tell a
        recorder nothing."""
        view, rows = source.view, source.cache if source.resident is None else source.resident
        serving = cls(view.manifest, source, recorder)
        if is_for_changes or recorder is not None or (isinstance(rows, Resident) and not rows.is_one_whole_layer):
            return serving
        if not view.manifest.spec.is_ngram:
            has_overlay = len(view.probe_table) > 0
            return serving if has_overlay else replace(serving, few_rows=FewRows(view, rows, counts))
        if rows is None:
            return serving
        few = Few(view, rows, counts)
        return replace(serving, few=few, many=Many(few, source))

    def without_short_paths(self) -> Serving:
        """In a forked process: no short path asks whether its process is the one that opened the store."""
        return Serving(self.manifest, self.source, self.recorder)

    def closed(self) -> Serving:
        """Without anything that holds files or memory."""
        return Serving(self.manifest, None)
