"""Look-ups of the longest match over token ids; encoded or dequantized, into any buffer.

Shapes: B batch, T position, M wanted rows, W positions of a flat token array, D row width, K longest n-gram.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import UsageError
from ngramstore.kernels.native import probe
from ngramstore.options import is_whole
from ngramstore.serve.filling import Filling
from ngramstore.serve.output import output_array, require_array
from ngramstore.store.view import View
from ngramstore.windows import as_array, as_tokens, plain, room


@dataclass(frozen=True)
class Hit:
    """What `lookup` found: rows (B, T, D), zeros where nothing matched; length (B, T) u8, 0 where no n-gram ends."""

    rows: np.ndarray
    length: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(B, T) bool: some stored n-gram ends here."""
        return self.length > 0


class NgramLookups(Filling):
    """What a store addressed by n-gram answers. Threads: any number at once."""

    def lookup(
        self,
        tokens: ArrayLike,
        *,
        starts: np.ndarray | None = None,
        out: np.ndarray | None = None,
        dtype: str = "f32",
    ) -> Hit:
        """Longest stored n-gram that ends at each token: (B, T) integers -> rows (B, T, D) and lengths (B, T) u8.

        starts (B, T) bool: True where a sequence begins inside a line; no n-gram reaches across. tokens (T,) count as one
        line and give rows (T, D). `out`: rows go there (C-contiguous f32, f16, or u16 / bfloat16 bits); else `dtype`
        ("f32", "f16", "bf16" as u16 bits) says what to allocate. Row i depends on tokens up to i of its line only.
        Raises UsageError, DamagedRows, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        self._require_ngram("lookup")
        tokens_BT, room_BT = self._lines(tokens, starts)
        shape = tokens_BT.shape
        rows = output_array(out, (*shape, self.dim), dtype)
        flat = plain(tokens_BT).reshape(-1)
        with self._reading:
            view, source = self._view_and_source()
            keys, ids, lengths = self._match(view, flat, plain(room_BT).reshape(-1))
            lost = self._fill(source, keys, ids, rows.reshape(len(flat), self.dim), ids)
        if lost is not None:
            lengths[lost] = 0
        self._counts.add_call(len(flat), int(np.count_nonzero(lengths)))
        return Hit(rows, lengths.reshape(shape))

    def lookup_tail(self, tokens: np.ndarray, room: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        """Longest stored n-gram ending at the last T of S tokens, for callers that keep each sequence's last tokens.

        tokens (B, S) u32 are context and new tokens of B lines; room (B, T) u8, T <= S: how many tokens an n-gram may have
        that ends at each of the last T, itself included (0: none is looked for). Returns lengths (B, T) u8; `out` gets the
        rows: (B, T, D) f32, f16 or u16 bits of bf16, zeros where nothing matched; or u8 (B, T, row_bytes), as stored.
        Raises UsageError, DamagedRows, DamagedStore, StoreClosed, WrongProcess.
        """
        few = self._current.few
        if few is not None and type(tokens) is np.ndarray and type(room) is np.ndarray:
            few_lengths = few.tail(tokens, room, out)
            if few_lengths is not None:
                return few_lengths
        self._check()
        self._require_ngram("lookup_tail")
        _require_tail(tokens, room, self.max_n)
        num_lines, width = tokens.shape
        count = room.shape[1]
        codec = self.spec.codec
        if getattr(out, "dtype", None) == np.uint8:
            if (
                out.shape != (num_lines, count, codec.row_bytes)
                or not out.flags.c_contiguous
                or not out.flags.writeable
            ):
                raise UsageError(
                    f"out must be contiguous and writeable, of shape {(num_lines, count, codec.row_bytes)}"
                )
            rows = out
        elif out is None:
            raise UsageError("lookup_tail needs out", hint="give an array (B, T, D), or (B, T, row_bytes) u8")
        else:
            rows = output_array(out, (num_lines, count, codec.dim), "f32")
        room_BS = np.zeros((num_lines, width), np.uint8)
        np.minimum(room, self.max_n, out=room_BS[:, width - count :])
        with self._reading:
            view, source = self._view_and_source()
            keys, ids, lengths = (
                found_W.reshape(num_lines, width)[:, width - count :].reshape(-1)
                for found_W in self._match(view, plain(tokens).reshape(-1), room_BS.reshape(-1))
            )
            lost = self._fill(source, keys, ids, rows.reshape(num_lines * count, rows.shape[2]), ids)
        if lost is not None:
            lengths[lost] = 0
        self._counts.add_call(len(lengths), int(np.count_nonzero(lengths)))
        return lengths.reshape(num_lines, count)

    def lookup_one(self, tokens: np.ndarray, end: int, room: int, *, out: np.ndarray) -> int:
        """`lookup_tail` at one position of one line: the length of the longest stored n-gram that ends at tokens[end - 1].

        tokens (S,) u32; those from `end` on are not looked at. room <= end: how many tokens the n-gram may have. `out`
        gets its row,
        zeros where nothing matched: (D,) f32, f16 or u16 bits of bf16, or u8 (row_bytes,), as stored. Raises as `lookup_tail`.
        """
        few = self._current.few
        if few is not None and type(tokens) is np.ndarray:
            length = few.one(tokens, end, room, out)
            if length >= 0:
                return length
        self._check()
        if not (is_whole(end) and is_whole(room)):
            raise UsageError(f"end and room must be integers, got {end!r} and {room!r}")
        if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not 0 < end <= len(tokens) or not 0 <= room <= end:
            raise UsageError(
                f"tokens of shape {np.shape(tokens)}, end {end}, room {room}", hint="(S,), room <= end <= S"
            )
        require_array(out, "(D,)")
        if out.ndim != 1:
            raise UsageError(f"out must be an array of shape (D,), got {out.shape}")
        end, room = int(end), min(int(room), self.max_n)
        begin = end - max(1, room)
        return int(self.lookup_tail(tokens[None, begin:end], np.array([[room]], np.uint8), out=out[None, None])[0, 0])

    def match(self, tokens: ArrayLike, *, starts: np.ndarray | None = None) -> np.ndarray:
        """As `lookup`, the lengths alone: (B, T) integers, starts (B, T) bool -> (B, T) u8, 0 where no n-gram ends.

        Reads no rows. Raises UsageError, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        self._require_ngram("match")
        tokens_BT, room_BT = self._lines(tokens, starts)
        with self._reading:
            view, _ = self._view_and_source()
            _, _, lengths = self._match(view, plain(tokens_BT).reshape(-1), plain(room_BT).reshape(-1))
        return lengths.reshape(tokens_BT.shape)

    def match_ids(self, tokens: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The IDs that `lookup` would find: (B, T) integers -> (B, T) u64 and lengths (B, T) u8, 0: none, any ID. Also
        (T,) of one line.

        Reads no rows. Raises UsageError, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        self._require_ngram("match_ids")
        tokens_BT, room_BT = self._lines(tokens, None)
        with self._reading:
            view, _ = self._view_and_source()
            _, ids, lengths = self._match(view, plain(tokens_BT).reshape(-1), room_BT.reshape(-1))
        return ids.reshape(tokens_BT.shape), lengths.reshape(tokens_BT.shape)

    def _lines(self, tokens: ArrayLike, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens as u32 of their own shape, and how many of them an n-gram may use at each: (B, T) u8."""
        tokens_BT = as_tokens(tokens)
        if tokens_BT.ndim not in (1, 2):
            raise UsageError(f"tokens have shape {tokens_BT.shape}, wanted (B, T)")
        lines = (1, *tokens_BT.shape)[-2:]
        if starts is not None:
            starts = as_array(starts, "starts")
            if starts.shape != tokens_BT.shape:
                raise UsageError(f"starts have shape {starts.shape}, the tokens {tokens_BT.shape}")
            starts = starts.reshape(lines)
        return tokens_BT, room(lines, self.max_n, starts)

    def _match(self, view: View, tokens_W: np.ndarray, room_W: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row keys, IDs and lengths (W,) of the longest matches: room (W,) u8 tokens may be used at each position."""
        parts = self._workers.parts(len(tokens_W))
        if len(parts) == 1:
            return self._match_part(view, tokens_W, room_W)

        def match(part: slice) -> list[np.ndarray]:
            before = min(part.start, self.max_n - 1)  # tokens that its first n-grams may reach back to
            some = slice(part.start - before, part.stop)
            room = room_W[some].copy()
            room[:before] = 0
            return [found[before:] for found in self._match_part(view, tokens_W[some], room)]

        keys, ids, lengths = zip(*self._workers.run(match, parts), strict=True)
        return np.concatenate(keys), np.concatenate(ids), np.concatenate(lengths)

    def _match_part(
        self, view: View, tokens_W: np.ndarray, room_W: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(tokens_W)
        keys, ids, lengths = np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.uint8)
        has_pending = bool(view.pending)
        mask = (1 << (self.max_n + 1)) - 2 if has_pending else view.lengths_mask
        done = probe.match(
            view.probe_table,
            tokens_W,
            room_W,
            np.uint64(self.spec.seed),  # a Python int above 2**63 would be another type, and compiled again
            mask,
            view.manifest.suffix_closed and not has_pending,
            keys,
            ids,
            lengths,
        )
        if done < count:
            raise view.index_damage(int(keys[done]))
        return keys, ids, lengths


def _require_tail(tokens: Any, room: Any, max_n: int) -> None:
    """UsageError unless tokens (B, S) u32 and room (B, T) u8 fit, and no room reaches before its line."""
    if not isinstance(tokens, np.ndarray) or not isinstance(room, np.ndarray):
        raise UsageError(f"tokens and room are arrays, got {type(tokens).__name__} and {type(room).__name__}")
    if tokens.dtype != np.uint32 or room.dtype != np.uint8 or tokens.ndim != 2 or room.ndim != 2:
        raise UsageError(f"tokens are {tokens.dtype} {tokens.shape}, room is {room.dtype} {room.shape}")
    width, count = tokens.shape[1], room.shape[1]
    if len(room) != len(tokens) or count > width:
        raise UsageError(f"tokens have shape {tokens.shape}, room has {room.shape}", hint="(B, S) and (B, T), T <= S")
    if (np.minimum(room, max_n) > np.arange(width - count + 1, width + 1)).any():
        raise UsageError(f"room reaches before the beginning of a line of {width} tokens: {int(room.max())}")
